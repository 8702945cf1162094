//! How far the audit logs of the CA's servers had come: a log that is cut off or written anew contradicts it.

use std::collections::BTreeMap;

use handfast_ca::audit::AuditHead;

/// The newest head of each server.
#[derive(Debug, Default)]
pub struct AuditHeads(BTreeMap<String, AuditHead>);

/// A log is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Tampered {
    /// Lines are gone.
    #[error(
        "the audit log of CA server {server} had {had} lines and now says {has}: it was cut off, or restored from a backup"
    )]
    Shorter {
        /// Whose log.
        server: String,
        /// Lines that it had.
        had: u64,
        /// Lines that it says it has.
        has: u64,
    },
    /// Other lines stand in their place.
    #[error(
        "the audit log of CA server {server} has another line {line} than before: it was written anew"
    )]
    Forked {
        /// Whose log.
        server: String,
        /// The last line of both.
        line: u64,
    },
}

impl AuditHeads {
    /// With heads that were kept.
    pub fn new(heads: impl IntoIterator<Item = AuditHead>) -> Self {
        let mut all = Self::default();
        for head in heads {
            all.0.insert(head.server().to_owned(), head);
        }
        all
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &AuditHead> {
        self.0.values()
    }

    /// Compares a head with the one before, and remembers it if it is newer. True: it is to be kept.
    ///
    /// # Errors
    /// The log has gone back or forked; the head before stays.
    pub fn take(&mut self, head: AuditHead) -> Result<bool, Tampered> {
        let server = head.server().to_owned();
        if let Some(known) = self.0.get(&server) {
            let (had, has) = (known.position(), head.position());
            if had == has {
                return Ok(false);
            }
            if has.entries == had.entries {
                return Err(Tampered::Forked {
                    server,
                    line: has.entries,
                });
            }
            // An older one may come late, by way of another server; only a newer one must not have fewer lines.
            if has.entries < had.entries {
                return if head.at_ms() > known.at_ms() {
                    Err(Tampered::Shorter {
                        server,
                        had: had.entries,
                        has: has.entries,
                    })
                } else {
                    Ok(false)
                };
            }
        }
        self.0.insert(server, head);
        Ok(true)
    }
}
