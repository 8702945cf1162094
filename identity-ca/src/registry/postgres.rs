//! The store in PostgreSQL, which several servers share: what only that kind needs.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::postgres::PgListener;
use sqlx::{AnyConnection, AnyPool, Connection};

use crate::Error;

/// Wakes servers that listen, when the change is committed.
pub(super) const NOTIFY: &str = "NOTIFY handfast_registry";
const CHANNEL: &str = "handfast_registry";

/// A caller waits no longer for a database that is away.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a PostgreSQL database is: `postgres://[USER@]HOST[:PORT]/DATABASE[?…]`
/// without a password, which has its place in a password file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreUrl(String);

impl FromStr for StoreUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |problem: &str| Err(Error::invalid("store", problem));
        let text = text.trim();
        let Some(rest) = text
            .strip_prefix("postgres://")
            .or_else(|| text.strip_prefix("postgresql://"))
        else {
            return bad(
                "write postgres://USER@HOST/DATABASE (?host=/FOLDER for a Unix socket, ?sslmode=verify-full&sslrootcert=FILE for TLS)",
            );
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let user = place.split_once('@').map_or("", |(user, _)| user);
        let named = query
            .split('&')
            .any(|pair| pair.split('=').next() == Some("password"));
        if user.contains(':') || named {
            return bad(
                "it holds a password, which would stand in logs and process lists; put that into a password file (~/.pgpass or PGPASSFILE, mode 0600) and leave it out here",
            );
        }
        if text.chars().any(|c| c.is_control() || c == ' ') || text.len() > 1024 {
            return bad("more than 1024 bytes, or blanks");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Notices that something was committed, by whomever.
pub(crate) struct Notices {
    url: String,
    listener: Option<PgListener>,
}

impl Notices {
    pub(super) fn new(url: &StoreUrl) -> Self {
        Self {
            url: url.0.clone(),
            listener: None,
        }
    }

    /// The next notice. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Result<(), Error> {
        let listener = match &mut self.listener {
            Some(listener) => listener,
            none => {
                let mut listener = PgListener::connect(&self.url).await?;
                listener.listen(CHANNEL).await?;
                none.insert(listener)
            }
        };
        match listener.recv().await {
            Ok(_) => Ok(()),
            Err(error) => {
                self.listener = None;
                Err(error.into())
            }
        }
    }
}

pub(super) async fn connect(url: &StoreUrl) -> Result<AnyPool, Error> {
    sqlx::any::install_default_drivers();
    // Alone first: a pool would try again and again, and say only that it did.
    AnyConnection::connect(&url.0).await?.close().await?;
    let pool = AnyPoolOptions::new()
        .max_connections(8)
        .acquire_timeout(PATIENCE)
        .connect(&url.0)
        .await?;
    Ok(pool)
}
