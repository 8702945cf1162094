//! What can go wrong, said so that an operator knows what, where and what to do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::certificate::CsrError;
use crate::verify::Rejection;

/// Every error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value that a person or an agent gave is not acceptable.
    #[error("{what}: {problem}")]
    Invalid {
        /// Which value.
        what: String,
        /// Why not, and what would be.
        problem: String,
    },
    /// Something that was asked for by name is not there.
    #[error("there is no {what} {name:?}")]
    Missing {
        /// The kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Something of that name is there already, and differs.
    #[error("{what} {name:?} exists already: {hint}")]
    Exists {
        /// The kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
        /// What to do.
        hint: String,
    },
    /// Something is in a state that does not go with what was asked.
    #[error("{what} {name:?}: {problem}")]
    Conflict {
        /// The kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
        /// Its state, and what to do.
        problem: String,
    },
    /// The caller may not do this.
    #[error("{0}")]
    Denied(String),
    /// A certificate signing request that no key is taken from.
    #[error("certificate signing request refused: {0}")]
    Csr(#[from] CsrError),
    /// A join token that buys nothing.
    #[error("join token refused: {0}")]
    Token(String),
    /// Two clocks differ too much for certificates to make sense.
    #[error(
        "the clocks differ: this machine says {ours}, the CA says {theirs} ({difference} apart, at most {allowed} is allowed); set the wrong one right (is NTP running?) and try again; nothing was changed"
    )]
    Clock {
        /// The agent's clock, RFC 3339.
        ours: String,
        /// The CA's clock, RFC 3339.
        theirs: String,
        /// In words.
        difference: String,
        /// In words.
        allowed: String,
    },
    /// A certificate that was not accepted.
    #[error("certificate refused: {0}")]
    Rejected(#[from] Rejection),
    /// The CA's folder, or a file in it, is not as it must be.
    #[error("{}: {problem}", path.display())]
    Folder {
        /// The folder or the file in it.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A file or socket could not be used.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {source}{hint}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
        /// What to do, or nothing.
        hint: &'static str,
    },
    /// A node has had as much signed as its entries account for.
    #[error(
        "node {node} has used up its {what}: {most} in an hour are what its entries account for; it gets one more in {wait} s, and more at once when entries are added or changed"
    )]
    TooMuch {
        /// The node.
        node: crate::NodeName,
        /// Of which kind.
        what: &'static str,
        /// In an hour.
        most: u64,
        /// Seconds until there is one more.
        wait: u64,
    },
    /// Too many others ask for the same at this moment.
    #[error("{0}; try again in a moment, nothing was changed")]
    Busy(&'static str),
    /// No room to write.
    #[error(
        "the disk that holds the CA's store is full: nothing was changed; free some space and try again"
    )]
    StoreFull,
    /// The store's file is not a store, or is damaged.
    #[error(
        "the CA's store {store} is damaged ({problem}); it was left as it is, nothing is repaired by guessing: restore it from a backup (`handfast ca restore`, see docs/recovery.md)"
    )]
    StoreDamaged {
        /// The file or database.
        store: String,
        /// What the check found.
        problem: String,
    },
    /// The store was damaged while the CA ran.
    #[error(
        "the CA's store is damaged ({0}); nothing is repaired by guessing. It is the file registry.sqlite in the CA's folder, or the database that ca.json there names; stop the CA, keep what is left as evidence, and restore the registry from a backup (`handfast ca restore`, see docs/recovery.md)"
    )]
    StoreCorrupt(#[source] sqlx::Error),
    /// An act cannot be written down.
    #[error("the audit log cannot be written ({0}); nothing is signed or changed without it")]
    Audit(String),
    /// The audit log is not what was written.
    #[error(
        "audit log {}: {problem}; it was left as it is: keep it as evidence, compare it with the copies that syslog and the agents have, and move it away to let the CA begin a new one", path.display()
    )]
    AuditBroken {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// The store's database does not answer.
    #[error("the CA's store is away: {0}; nothing was changed, try again")]
    StoreAway(#[source] sqlx::Error),
    /// A backup that cannot be used, or not written.
    #[error("backup {}: {problem}", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Nothing is signed until a restored CA has heard from its agents.
    #[error("{0}")]
    Recovering(String),
    /// This server signs nothing: it was removed, is cut off, or has nothing to sign with.
    #[error("{0}")]
    NotSigning(String),
    /// What several callers waited for together has failed.
    #[error(transparent)]
    Shared(Arc<Self>),
    /// A change was committed, but this server could not take it in.
    #[error(
        "it is done and stored, but not yet in force on this server, which cannot read the store ({0}); that is tried again every 2 s"
    )]
    NotInForce(#[source] Box<Self>),
    /// The store failed in another way.
    #[error("the CA's store: {0}")]
    Store(#[source] sqlx::Error),
    /// The other side refused a call.
    #[error("{message}")]
    Refused {
        /// The gRPC code.
        code: tonic::Code,
        /// What it said.
        message: String,
    },
    /// The other side could not be reached.
    #[error("cannot reach {address}: {problem}")]
    Unreachable {
        /// Whom.
        address: String,
        /// Why.
        problem: String,
    },
    /// The Kubernetes API refused, or did not answer.
    #[error("Kubernetes: cannot {doing}: {problem}")]
    Cluster {
        /// What was asked.
        doing: &'static str,
        /// What it said.
        problem: String,
    },
    /// The other side said something that the protocol does not allow.
    #[error("the other side broke the protocol: {0}")]
    Protocol(String),
    /// A cryptographic operation failed.
    #[error("cryptography: {0}")]
    Crypto(String),
}

impl Error {
    pub(crate) fn invalid(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            what: what.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// In one word, for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Csr(_) => "csr",
            Self::Token(_) => "token",
            Self::Clock { .. } => "clock",
            Self::Rejected(_) => "certificate",
            Self::Denied(_) => "denied",
            Self::Invalid { .. } => "invalid",
            Self::Missing { .. } => "missing",
            Self::Exists { .. } => "exists",
            Self::Conflict { .. } => "conflict",
            Self::StoreFull
            | Self::StoreDamaged { .. }
            | Self::StoreCorrupt(_)
            | Self::Store(_) => "store",
            Self::Audit(_) | Self::AuditBroken { .. } => "audit",
            Self::TooMuch { .. } => "too-much",
            Self::Busy(_) => "busy",
            Self::NotSigning(_) => "not-signing",
            Self::Shared(error) => error.reason(),
            Self::NotInForce(error) => error.reason(),
            _ => "other",
        }
    }

    /// The gRPC code that tells a caller who is to blame.
    pub(crate) fn code(&self) -> tonic::Code {
        use tonic::Code;
        match self {
            Self::Invalid { .. } | Self::Csr(_) => Code::InvalidArgument,
            Self::Missing { .. } => Code::NotFound,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::Conflict { .. } => Code::FailedPrecondition,
            Self::Denied(_) | Self::Token(_) => Code::PermissionDenied,
            Self::Rejected(_) => Code::Unauthenticated,
            Self::Clock { .. } => Code::FailedPrecondition,
            Self::StoreFull | Self::TooMuch { .. } | Self::Busy(_) => Code::ResourceExhausted,
            Self::StoreDamaged { .. } | Self::StoreCorrupt(_) => Code::DataLoss,
            Self::Audit(_) | Self::Recovering(_) | Self::NotSigning(_) => Code::Unavailable,
            Self::Refused { code, .. } => *code,
            Self::NotInForce(_) => Code::Unknown,
            Self::Shared(error) => error.code(),
            Self::Unreachable { .. } | Self::StoreAway(_) | Self::Cluster { .. } => {
                Code::Unavailable
            }
            _ => Code::Internal,
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .unwrap_or_default();
        match (&error, code.as_ref()) {
            // SQLITE_FULL, SQLITE_IOERR_WRITE which a full quota gives, and
            // PostgreSQL's disk_full.
            (_, "13" | "778" | "53100") => Self::StoreFull,
            // data_corrupted and index_corrupted.
            (_, "XX001" | "XX002") => Self::StoreCorrupt(error),
            (_, code) if is_sqlite_damage(code) => Self::StoreCorrupt(error),
            // PostgreSQL: connection exceptions, shutting down, starting up.
            (_, "57P01" | "57P02" | "57P03") => Self::StoreAway(error),
            (_, code) if code.len() == 5 && code.starts_with("08") => Self::StoreAway(error),
            (sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_), _) => {
                Self::StoreAway(error)
            }
            _ => Self::Store(error),
        }
    }
}

/// SQLITE_CORRUPT and SQLITE_NOTADB, with their extended codes. PostgreSQL's
/// codes have five characters, and some look like numbers.
fn is_sqlite_damage(code: &str) -> bool {
    let primary = code.parse::<u16>().unwrap_or(0) & 0xff;
    code.len() < 5 && matches!(primary, 11 | 26)
}

impl From<rcgen::Error> for Error {
    fn from(error: rcgen::Error) -> Self {
        Self::Crypto(error.to_string())
    }
}
