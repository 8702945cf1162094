//! The deny list in the store; it is signed when it is loaded.

use super::Registry;
use super::store::{Change, Section, int, uint};
use crate::deny::MAX_DENY_LIST;
use crate::model::{Denial, Subject};
use crate::names::{is_reserved, operator_id};
use crate::{Error, node_id, now_ms};

const MAX_REASON: usize = 512;
/// The signed list stays well below what a node reads: bytes of all lines,
/// with what encoding adds to each.
const MAX_BYTES: i64 = (MAX_DENY_LIST / 2) as i64;
const LINE: i64 = 32;

impl Registry {
    /// All lines.
    pub(super) async fn denials(&self) -> Result<Vec<Denial>, Error> {
        let rows: Vec<(String, String, String, i64)> = sqlx::query_as(
            "SELECT kind, subject, reason, since_ms FROM denials ORDER BY since_ms, subject",
        )
        .fetch_all(self.store.reader())
        .await?;
        let denial = |(kind, subject, reason, since): (String, String, String, i64)| {
            let subject = match kind.as_str() {
                "spiffe_id" => Subject::SpiffeId(self.stored(operator_id(&subject))?),
                "node" => Subject::Node(self.stored(subject.parse())?),
                _ => Subject::Serial(self.stored(subject.parse())?),
            };
            Ok(Denial {
                subject,
                reason,
                since_ms: uint(since),
            })
        };
        rows.into_iter().map(denial).collect()
    }

    /// Puts a subject on the list. Saying it twice changes the reason.
    pub(crate) async fn revoke(&self, subject: Subject, reason: &str) -> Result<u64, Error> {
        let subject = self.normal(subject)?;
        check_reason(reason)?;
        let mut change = self.store.begin().await?;
        if let Subject::Node(name) = &subject
            && self.binding(&mut change, name).await?.is_none()
        {
            return Err(Error::Missing {
                what: "node",
                name: name.to_string(),
            });
        }
        let (kind, text) = columns(&subject);
        sqlx::query(
            "INSERT INTO denials VALUES ($1, $2, $3, $4) ON CONFLICT (kind, subject) DO UPDATE SET reason = $3",
        )
        .bind(kind)
        .bind(text)
        .bind(reason)
        .bind(int(now_ms()))
        .execute(&mut *change)
        .await?;
        let bytes: i64 = sqlx::query_scalar(
            "SELECT CAST(coalesce(sum(octet_length(subject) + octet_length(reason) + $1), 0) AS BIGINT) FROM denials",
        )
        .bind(LINE)
        .fetch_one(&mut *change)
        .await?;
        if bytes > MAX_BYTES {
            return Err(Error::invalid(
                "deny list",
                "it is full (2 MiB); undo revocations whose certificates have expired long ago",
            ));
        }
        let number = change.number(Section::Deny).await?;
        change.commit().await?;
        Ok(number)
    }

    /// Takes a subject off the list.
    pub(crate) async fn unrevoke(&self, subject: Subject, reason: &str) -> Result<u64, Error> {
        let subject = self.normal(subject)?;
        check_reason(reason)?;
        let mut change = self.store.begin().await?;
        let (kind, text) = columns(&subject);
        let gone = sqlx::query("DELETE FROM denials WHERE kind = $1 AND subject = $2")
            .bind(kind)
            .bind(text)
            .execute(&mut *change)
            .await?;
        if gone.rows_affected() == 0 {
            return Err(Error::Missing {
                what: "revocation of",
                name: subject.to_string(),
            });
        }
        if let Subject::Node(name) = &subject {
            self.keep_place(&mut change, name).await?;
        }
        let number = change.number(Section::Deny).await?;
        change.commit().await?;
        Ok(number)
    }

    /// Puts other lines, of a list that the CA itself has signed, in the place
    /// of those that were there at a time (unix milliseconds). Later ones stay.
    pub(crate) async fn replace_denials(
        &self,
        change: &mut Change,
        denials: &[Denial],
        until_ms: i64,
    ) -> Result<(), Error> {
        sqlx::query("DELETE FROM denials WHERE since_ms < $1")
            .bind(until_ms)
            .execute(&mut **change)
            .await?;
        for denial in denials {
            let (kind, text) = columns(&denial.subject);
            sqlx::query("INSERT INTO denials VALUES ($1, $2, $3, $4) ON CONFLICT (kind, subject) DO NOTHING")
                .bind(kind)
                .bind(text)
                .bind(&denial.reason)
                .bind(int(denial.since_ms))
                .execute(&mut **change)
                .await?;
        }
        Ok(())
    }

    /// Gives the list a new number, so that it is signed and dated anew.
    pub(crate) async fn redate_denials(&self) -> Result<(), Error> {
        let mut change = self.store.begin().await?;
        change.number(Section::Deny).await?;
        change.commit().await
    }

    pub(super) async fn denied(
        &self,
        change: &mut Change,
        subject: &Subject,
    ) -> Result<bool, Error> {
        let (kind, text) = columns(subject);
        let found: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM denials WHERE kind = $1 AND subject = $2")
                .bind(kind)
                .bind(text)
                .fetch_optional(&mut **change)
                .await?;
        Ok(found.is_some())
    }

    /// One subject, one spelling: a node's SPIFFE ID means the node.
    fn normal(&self, subject: Subject) -> Result<Subject, Error> {
        let Subject::SpiffeId(id) = &subject else {
            return Ok(subject);
        };
        if id.path().is_empty() {
            return Err(Error::invalid(
                format!("SPIFFE ID {id}"),
                "a whole trust domain is not revoked this way",
            ));
        }
        if !id.is_member_of(&self.trust_domain) || !is_reserved(id) {
            return Ok(subject);
        }
        let name = id
            .path()
            .strip_prefix("/handfast/node/")
            .and_then(|name| name.parse().ok());
        match name {
            Some(name) if node_id(&self.trust_domain, &name)? == *id => Ok(Subject::Node(name)),
            _ => Err(Error::invalid(
                format!("SPIFFE ID {id}"),
                "it is the CA's own",
            )),
        }
    }
}

fn columns(subject: &Subject) -> (&'static str, String) {
    match subject {
        Subject::SpiffeId(id) => ("spiffe_id", id.to_string()),
        Subject::Node(name) => ("node", name.to_string()),
        Subject::Serial(serial) => ("serial", serial.to_string()),
    }
}

fn check_reason(reason: &str) -> Result<(), Error> {
    let printable = !reason.chars().any(char::is_control);
    if reason.trim().is_empty() || reason.len() > MAX_REASON || !printable {
        return Err(Error::invalid(
            "reason",
            format!("say why (--reason), in at most {MAX_REASON} printable characters"),
        ));
    }
    Ok(())
}
