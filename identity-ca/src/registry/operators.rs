//! Operators that were given a role, beside root and the CA's owner.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use spiffe::SpiffeId;

use super::Registry;
use super::store::{Section, int, uint};
use crate::model::{OperatorGrant, Role};
use crate::names::operator_id;
use crate::{Error, now_ms};

const MAX_OPERATORS: i64 = 1000;

/// Whom a role is given to, and who calls.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Who {
    /// A user of the machine that the CA runs on.
    Uid(u32),
    /// Whoever holds an SVID of this identity.
    Svid(SpiffeId),
}

impl FromStr for Who {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(uid) = text.strip_prefix("uid:") {
            let uid = uid.parse().map_err(|_| {
                Error::invalid(
                    format!("operator {text:?}"),
                    "write uid:NUMBER or a SPIFFE ID",
                )
            })?;
            return Ok(Self::Uid(uid));
        }
        operator_id(text).map(Self::Svid)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Svid(id) => id.fmt(f),
        }
    }
}

/// All roles that were given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Operators(BTreeMap<Who, OperatorGrant>);

impl Operators {
    /// The role of a caller.
    pub(crate) fn role(&self, who: &Who) -> Option<Role> {
        self.0.get(who).map(|grant| grant.role)
    }

    /// Does this identity have a role?
    pub(crate) fn knows(&self, id: &SpiffeId) -> bool {
        self.0.contains_key(&Who::Svid(id.clone()))
    }

    /// Everybody with a role.
    pub(crate) fn grants(&self) -> impl Iterator<Item = &OperatorGrant> {
        self.0.values()
    }

    /// Does a user other than the owner administer this CA?
    pub(crate) fn any_uid(&self) -> bool {
        self.0.keys().any(|who| matches!(who, Who::Uid(_)))
    }
}

impl Registry {
    pub(super) async fn operators(&self) -> Result<Operators, Error> {
        let rows: Vec<(String, String, i64, String)> =
            sqlx::query_as("SELECT name, role, created_ms, created_by FROM operators")
                .fetch_all(self.store.reader())
                .await?;
        let grant = |(name, role, created, by): (String, String, i64, String)| {
            let who: Who = self.stored(name.parse())?;
            let grant = OperatorGrant {
                name,
                role: self.stored(role.parse())?,
                created_at_ms: uint(created),
                created_by: by,
            };
            Ok((who, grant))
        };
        rows.into_iter()
            .map(grant)
            .collect::<Result<_, Error>>()
            .map(Operators)
    }

    /// Gives a role, instead of the one that they had.
    pub(crate) async fn put_operator(&self, who: &Who, role: Role, by: &str) -> Result<(), Error> {
        if let Who::Svid(id) = who
            && (!id.is_member_of(&self.trust_domain)
                || id.path().is_empty()
                || crate::names::is_reserved(id))
        {
            return Err(Error::invalid(
                format!("operator {id}"),
                format!(
                    "an operator's identity is one of entries of spiffe://{}/",
                    self.trust_domain
                ),
            ));
        }
        let mut change = self.store.begin().await?;
        sqlx::query(
            "INSERT INTO operators VALUES ($1, $2, $3, $4)
             ON CONFLICT (name) DO UPDATE SET role = $2, created_ms = $3, created_by = $4",
        )
        .bind(who.to_string())
        .bind(role.as_str())
        .bind(int(now_ms()))
        .bind(by)
        .execute(&mut *change)
        .await?;
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM operators")
            .fetch_one(&mut *change)
            .await?;
        if count > MAX_OPERATORS {
            return Err(Error::invalid("operators", "more than 1,000"));
        }
        change.number(Section::Operators).await?;
        change.commit().await
    }

    /// Takes a role away.
    pub(crate) async fn remove_operator(&self, who: &Who) -> Result<(), Error> {
        let mut change = self.store.begin().await?;
        let gone = sqlx::query("DELETE FROM operators WHERE name = $1")
            .bind(who.to_string())
            .execute(&mut *change)
            .await?;
        if gone.rows_affected() == 0 {
            return Err(Error::Missing {
                what: "operator",
                name: who.to_string(),
            });
        }
        change.number(Section::Operators).await?;
        change.commit().await
    }
}
