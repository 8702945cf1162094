//! What a rule asks about the identities of a flow.

use std::time::Duration;

use crate::model::Authentication;
use crate::read::cursor::Cursor;
use crate::read::dialect::Dialect;
use crate::selector::IdPattern;

/// A pair is proven anew when its age is up; sooner than this would only cost.
const LEAST_AGE: Duration = Duration::from_secs(30);

/// The content of `authentication`.
#[derive(Default)]
pub(crate) struct Asked {
    pub(crate) mode: Option<Authentication>,
    pub(crate) ids: Option<Vec<IdPattern>>,
    pub(crate) max_age: Option<Duration>,
}

pub(crate) fn read(cursor: &Cursor<'_>, dialect: &'static Dialect) -> Option<Asked> {
    let fields = cursor.fields(&dialect.authentication)?;
    let mode = fields
        .need("mode", "write required if both ends are to be proven")
        .and_then(|mode| mode.choice("mode", dialect.modes));
    let ids = match fields.get("peers") {
        Some(peers) => Some(patterns(&peers)?),
        None => None,
    };
    let max_age = match fields.get("maxAge") {
        Some(age) => Some(duration(&age)?),
        None => None,
    };
    Some(Asked {
        mode: Some(mode?),
        ids,
        max_age,
    })
}

fn patterns(cursor: &Cursor<'_>) -> Option<Vec<IdPattern>> {
    let read: Vec<_> = cursor.items()?.iter().map(pattern).collect();
    read.into_iter().collect()
}

fn pattern(cursor: &Cursor<'_>) -> Option<IdPattern> {
    IdPattern::parse(cursor.string()?)
        .map_err(|why| {
            cursor.error(format!(
                "not a SPIFFE ID pattern: {why}; write one such as spiffe://example.org/ns/*/sa/web"
            ));
        })
        .ok()
}

fn duration(cursor: &Cursor<'_>) -> Option<Duration> {
    match humantime::parse_duration(cursor.string()?) {
        Err(_) => cursor.error("not a duration: write one such as 30m, 12h or 1h30m"),
        Ok(age) if age < LEAST_AGE => {
            cursor.error(format!("too short: {} s is the least", LEAST_AGE.as_secs()));
        }
        Ok(age) => return Some(age),
    }
    None
}
