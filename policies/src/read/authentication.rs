//! What a rule asks about the identities of a flow.

use std::time::Duration;

use crate::model::Authentication;
use crate::read::cursor::Cursor;
use crate::read::dialect::{OURS, Rules};
use crate::read::shape::{Item, Schema, Shape, field};
use crate::selector::IdPattern;

/// A pair is proven anew when its age is up; sooner than this would only cost.
const LEAST_AGE: Duration = Duration::from_secs(30);

const ABOUT: &str = "How both ends of a flow must be proven.";

pub(crate) const OWN_MODES: &[(&str, Authentication)] = &[
    ("required", Authentication::Required),
    ("audit", Authentication::Audit),
    ("disabled", Authentication::Disabled),
    ("test-always-fail", Authentication::TestAlwaysFail),
];

pub(crate) const CILIUM_MODES: &[(&str, Authentication)] = &[
    ("required", Authentication::Required),
    ("disabled", Authentication::Disabled),
    ("test-always-fail", Authentication::TestAlwaysFail),
];

pub(crate) static OWN: Schema = Schema {
    about: ABOUT,
    known: &[
        field(
            "mode",
            Shape::Choice(&["required", "audit", "disabled", "test-always-fail"]),
            "required: only with both ends proven; audit: counts what required would drop; disabled: without proof; \
             test-always-fail: never.",
        )
        .required(),
        field(
            "peers",
            Shape::List(Item::Form("^spiffe://[^/]+/.+$"), 0, usize::MAX),
            "The far end's SPIFFE ID must match one of these: * is one path segment, ** at the end one or more.",
        ),
        field(
            "maxAge",
            Shape::Form("^([0-9]+[ ]?[a-z]+[ ]?)+$"),
            "The longest that a proof serves, such as 30m, 12h or 1h30m; at least 30s.",
        ),
    ],
    refused: &[],
};

pub(crate) static CILIUM: Schema = Schema {
    about: ABOUT,
    known: &[field(
        "mode",
        Shape::Choice(&["required", "disabled", "test-always-fail"]),
        "required: only with both ends proven; disabled: without proof; test-always-fail: never.",
    )
    .required()],
    refused: &[("peers", OURS), ("maxAge", OURS)],
};

/// The content of `authentication`.
#[derive(Default)]
pub(crate) struct Asked {
    pub(crate) mode: Option<Authentication>,
    pub(crate) ids: Option<Vec<IdPattern>>,
    pub(crate) max_age: Option<Duration>,
}

pub(crate) fn read(cursor: &Cursor<'_>, rules: &Rules) -> Option<Asked> {
    let fields = cursor.fields(rules.authentication)?;
    let mode = fields
        .need("mode", "write required if both ends are to be proven")
        .and_then(|mode| mode.choice("mode", rules.modes));
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
    cursor.each(pattern)
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
