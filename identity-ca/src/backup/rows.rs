//! Rows of any table as text and back, in either kind of database.
//!
//! The tables are asked for, not listed here: what a later migration adds is
//! in the backup without anybody having to think of it.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use sqlx::any::{AnyRow, AnyTypeInfoKind};
use sqlx::{AnyConnection, AssertSqlSafe, Column, Row as _, TypeInfo, ValueRef};

use super::file::to_line;
use super::{Header, VERSION};
use crate::Error;
use crate::authority::Authority;
use crate::now_ms;
use crate::registry::{Store, uint};

/// Not of the registry's content: the database's own, what says who is there now, and what is made anew.
const LEFT_OUT: [&str; 7] = [
    "_sqlx_migrations",
    "alarms",
    "crls",
    "recovery",
    "recovery_heard",
    "servers",
    "signers",
];
/// Others refer to these, which therefore come first.
const FIRST: [&str; 2] = ["nodes", "rotations"];
/// Lines are handed on in pieces of about this size.
const PIECE: usize = 256 << 10;

/// A row of a table; columns that are NULL are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(super) table: String,
    pub(super) row: BTreeMap<String, Cell>,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Cell {
    Number(i64),
    Text(String),
    Bytes { base64: String },
}

/// All of the registry at one moment, as lines; handed on in pieces until `take` says no.
pub(crate) async fn dump<F>(
    store: &Store,
    authority: &Authority,
    mut take: impl FnMut(Vec<u8>) -> F,
) -> Result<(), Error>
where
    F: Future<Output = bool>,
{
    let mut reading = store.begin_reading().await?;
    let sequence: i64 = sqlx::query_scalar("SELECT last FROM sequence")
        .fetch_one(&mut *reading)
        .await?;
    let header = Header {
        handfast_backup: VERSION,
        trust_domain: authority.trust_domain().as_str().to_owned(),
        server: authority.server().to_owned(),
        prefix_ranges: authority.prefix_ranges().to_vec(),
        lifetimes_seconds: *authority.lifetimes(),
        at_ms: now_ms(),
        sequence: uint(sequence),
        schema: schema(&mut reading).await?,
    };
    let mut piece = to_line(&header)?.into_bytes();
    for table in store.tables(&mut reading).await? {
        if LEFT_OUT.contains(&table.as_str()) {
            continue;
        }
        let sql = format!("SELECT * FROM {table}");
        let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(&mut *reading);
        while let Some(row) = rows.try_next().await? {
            let row = Row {
                table: table.clone(),
                row: cells(&row)?,
            };
            piece.extend(to_line(&row)?.as_bytes());
            if piece.len() >= PIECE && !take(std::mem::take(&mut piece)).await {
                return Ok(());
            }
        }
    }
    take(piece).await;
    Ok(())
}

/// The last step of the migrations.
pub(super) async fn schema(store: &mut AnyConnection) -> Result<i64, Error> {
    Ok(
        sqlx::query_scalar("SELECT CAST(max(version) AS BIGINT) FROM _sqlx_migrations")
            .fetch_one(store)
            .await?,
    )
}

/// Empties every table that a backup fills, those that refer to others first.
pub(super) async fn clear(store: &Store, change: &mut AnyConnection) -> Result<(), Error> {
    let tables = store.tables(change).await?;
    let (first, rest): (Vec<_>, Vec<_>) = tables
        .into_iter()
        .filter(|table| table != "_sqlx_migrations")
        .partition(|table| FIRST.contains(&table.as_str()));
    for table in rest.into_iter().chain(first) {
        sqlx::query(AssertSqlSafe(format!("DELETE FROM {table}")))
            .execute(&mut *change)
            .await?;
    }
    Ok(())
}

/// Puts a row back. `tables` are those that there are.
pub(super) async fn insert(
    change: &mut AnyConnection,
    tables: &[String],
    row: &Row,
) -> Result<(), Error> {
    let plain =
        |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let known = tables.contains(&row.table) && !LEFT_OUT.contains(&row.table.as_str());
    if !known || !row.row.keys().all(|column| plain(column)) {
        return Err(Error::invalid(
            "backup",
            format!("this program has no table {:?} like that", row.table),
        ));
    }
    let columns: Vec<&str> = row.row.keys().map(String::as_str).collect();
    let places: Vec<String> = (1..=columns.len()).map(|at| format!("${at}")).collect();
    let sql = format!(
        "INSERT INTO {} ({}) VALUES ({})",
        row.table,
        columns.join(", "),
        places.join(", ")
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for cell in row.row.values() {
        query = match cell {
            Cell::Number(number) => query.bind(*number),
            Cell::Text(text) => query.bind(text.clone()),
            Cell::Bytes { base64 } => {
                let bytes = BASE64
                    .decode(base64.as_bytes())
                    .map_err(|_| Error::invalid("backup", "a value is not base64"))?;
                query.bind(bytes)
            }
        };
    }
    query.execute(change).await?;
    Ok(())
}

fn cells(row: &AnyRow) -> Result<BTreeMap<String, Cell>, Error> {
    let mut cells = BTreeMap::new();
    for (at, column) in row.columns().iter().enumerate() {
        let value = row.try_get_raw(at)?;
        if value.is_null() {
            continue;
        }
        let cell = match value.type_info().kind() {
            AnyTypeInfoKind::Text => Cell::Text(row.try_get(at)?),
            AnyTypeInfoKind::Blob => {
                let bytes: Vec<u8> = row.try_get(at)?;
                Cell::Bytes {
                    base64: BASE64.encode(&bytes),
                }
            }
            AnyTypeInfoKind::SmallInt | AnyTypeInfoKind::Integer | AnyTypeInfoKind::BigInt => {
                Cell::Number(row.try_get(at)?)
            }
            _ => {
                let name = value.type_info().name().to_owned();
                return Err(Error::invalid("store", format!("a column of type {name}")));
            }
        };
        cells.insert(column.name().to_owned(), cell);
    }
    Ok(cells)
}

impl Store {
    /// The tables that there are, those first that others refer to.
    pub(super) async fn tables(&self, store: &mut AnyConnection) -> Result<Vec<String>, Error> {
        let mut tables: Vec<String> = sqlx::query_scalar(self.tables_statement())
            .fetch_all(store)
            .await?;
        tables.sort_by_key(|table| (!FIRST.contains(&table.as_str()), table.clone()));
        Ok(tables)
    }
}
