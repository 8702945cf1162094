//! Policy documents: kept, versioned and handed on; never read here.

use super::Registry;
use super::store::{Change, Section, int, uint};
use crate::model::PolicyDocument;
use crate::{Error, now_ms};

const MAX_NAME: usize = 512;
const MAX_TEXT: usize = 1 << 20;
const MAX_DOCUMENTS: usize = 10_000;
/// All documents together: agents get them in one message.
const MAX_TOTAL: u64 = 32 << 20;

/// A document as an operator wrote it.
#[derive(Debug, Clone)]
pub(crate) struct PolicyOrder {
    pub(crate) name: String,
    pub(crate) text: String,
    /// Only if this is its version now.
    pub(crate) instead_of: Option<u64>,
}

type Row = (String, String, i64, i64);

impl Registry {
    /// All documents.
    pub(super) async fn policies(&self) -> Result<Vec<PolicyDocument>, Error> {
        let rows: Vec<Row> =
            sqlx::query_as("SELECT name, text, version, changed_ms FROM policies ORDER BY name")
                .fetch_all(self.store.reader())
                .await?;
        Ok(rows.into_iter().map(document).collect())
    }

    /// Puts documents: all or none. One whose text is as before keeps its version.
    pub(crate) async fn put_policies(
        &self,
        orders: &[PolicyOrder],
    ) -> Result<Vec<PolicyDocument>, Error> {
        orders.iter().try_for_each(check)?;
        let mut change = self.store.begin().await?;
        let (documents, changed) = put(&mut change, orders).await?;
        if changed {
            change.number(Section::Policies).await?;
            change.commit().await?;
        }
        Ok(documents)
    }

    /// Deletes documents: all or none.
    pub(crate) async fn delete_policies(
        &self,
        names: &[String],
    ) -> Result<Vec<PolicyDocument>, Error> {
        let change = self.store.begin().await?;
        delete_and_commit(change, names).await
    }
}

/// Writes documents, and says whether one has changed.
pub(super) async fn put(
    change: &mut Change,
    orders: &[PolicyOrder],
) -> Result<(Vec<PolicyDocument>, bool), Error> {
    let mut documents = Vec::with_capacity(orders.len());
    let mut changed = false;
    for order in orders {
        if let Some(expected) = order.instead_of {
            still(change, &order.name, expected).await?;
        }
        changed |= put_text(change, &order.name, &order.text).await?;
        let row: Row =
            sqlx::query_as("SELECT name, text, version, changed_ms FROM policies WHERE name = $1")
                .bind(&order.name)
                .fetch_one(&mut **change)
                .await?;
        documents.push(document(row));
    }
    if !changed {
        return Ok((documents, false));
    }
    let (count, bytes): (i64, i64) = sqlx::query_as(
        "SELECT count(*), CAST(coalesce(sum(octet_length(text)), 0) AS BIGINT) FROM policies",
    )
    .fetch_one(&mut **change)
    .await?;
    if uint(count) > MAX_DOCUMENTS as u64 || uint(bytes) > MAX_TOTAL {
        return Err(Error::invalid(
            "policies",
            "more than 10,000 documents or 32 MiB in all",
        ));
    }
    Ok((documents, true))
}

/// Writes one document, unless it says that already.
pub(super) async fn put_text(change: &mut Change, name: &str, text: &str) -> Result<bool, Error> {
    let written = sqlx::query(
        "INSERT INTO policies VALUES ($1, $2, 1, $3)
         ON CONFLICT (name) DO UPDATE SET text = $2, version = policies.version + 1, changed_ms = $3
         WHERE policies.text <> $2",
    )
    .bind(name)
    .bind(text)
    .bind(int(now_ms()))
    .execute(&mut **change)
    .await?;
    Ok(written.rows_affected() > 0)
}

/// Deletes documents, and ends the change with that.
pub(super) async fn delete_and_commit(
    mut change: Change,
    names: &[String],
) -> Result<Vec<PolicyDocument>, Error> {
    let mut documents = Vec::with_capacity(names.len());
    for name in names {
        let gone = take_out(&mut change, name).await?;
        let missing = || Error::Missing {
            what: "policy",
            name: name.clone(),
        };
        documents.push(gone.ok_or_else(missing)?);
    }
    if !documents.is_empty() {
        change.number(Section::Policies).await?;
        change.commit().await?;
    }
    Ok(documents)
}

/// Deletes one document, with what was seen under it.
pub(super) async fn take_out(
    change: &mut Change,
    name: &str,
) -> Result<Option<PolicyDocument>, Error> {
    let row: Option<Row> = sqlx::query_as(
        "DELETE FROM policies WHERE name = $1 RETURNING name, text, version, changed_ms",
    )
    .bind(name)
    .fetch_optional(&mut **change)
    .await?;
    sqlx::query("DELETE FROM observations WHERE policy = $1")
        .bind(name)
        .execute(&mut **change)
        .await?;
    Ok(row.map(document))
}

/// Refuses to replace what its writer has not seen.
async fn still(change: &mut Change, name: &str, expected: u64) -> Result<(), Error> {
    let version: Option<i64> = sqlx::query_scalar("SELECT version FROM policies WHERE name = $1")
        .bind(name)
        .fetch_optional(&mut **change)
        .await?;
    match version.map(uint) {
        Some(version) if version == expected => Ok(()),
        Some(version) => Err(Error::invalid(
            format!("policy {name:?}"),
            format!(
                "it has changed meanwhile (version {version}, not {expected}): look at it again"
            ),
        )),
        None => Err(Error::Missing {
            what: "policy",
            name: name.to_owned(),
        }),
    }
}

fn document((name, text, version, changed): Row) -> PolicyDocument {
    PolicyDocument {
        name,
        text,
        version: uint(version),
        changed_at_ms: uint(changed),
    }
}

/// What a document may be.
pub(super) fn check(order: &PolicyOrder) -> Result<(), Error> {
    let name_ok =
        (1..=MAX_NAME).contains(&order.name.len()) && !order.name.chars().any(char::is_control);
    if !name_ok {
        return Err(Error::invalid(
            "policy name",
            format!("1 to {MAX_NAME} printable characters"),
        ));
    }
    if order.text.is_empty() || order.text.len() > MAX_TEXT {
        return Err(Error::invalid(
            format!("policy {:?}", order.name),
            format!("{} bytes; a document has 1 to {MAX_TEXT}", order.text.len()),
        ));
    }
    Ok(())
}
