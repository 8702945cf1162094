//! What a backup holds, read to its end without making anything of it: the only backup that is worth something is one that
//! was looked at.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

use serde::Serialize;

use super::file::{self, Lines};
use crate::Error;

/// What stands in a backup that is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Examined {
    /// Whom the CA signs for.
    pub trust_domain: String,
    /// The server that wrote it.
    pub server: String,
    /// When (unix milliseconds).
    pub at_ms: u64,
    /// The step of the store's migrations that it needs at least.
    pub schema: i64,
    /// Rows by table.
    pub rows: BTreeMap<String, u64>,
    /// Names of the sealed keys in it.
    pub keys: Vec<String>,
}

/// Reads the backup in a file to its end.
pub fn examine(path: &Path) -> Result<Examined, Error> {
    summed_up(file::open(path)?)
}

/// Reads a backup that is not in a file; errors say that it is at `path`.
pub fn examine_from(path: &Path, reader: impl BufRead) -> Result<Examined, Error> {
    summed_up(Lines::begin(path, reader)?)
}

fn summed_up(mut lines: Lines<impl BufRead>) -> Result<Examined, Error> {
    let mut rows = BTreeMap::new();
    while let Some(row) = lines.row()? {
        *rows.entry(row.table).or_default() += 1;
    }
    let (header, keys) = (lines.content.header, lines.content.keys);
    Ok(Examined {
        trust_domain: header.trust_domain,
        server: header.server,
        at_ms: header.at_ms,
        schema: header.schema,
        rows,
        keys: keys.into_iter().map(|key| key.name).collect(),
    })
}
