//! What the registry holds and the update stream carries, as plain values.

mod denial;
mod entry;
mod node;
mod observation;
mod operator;
mod server;
mod token;
mod trial;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use spiffe::SpiffeId;

use crate::Error;

pub use self::denial::{Denial, Serial, Subject};
pub use self::entry::{Entry, Selector};
pub use self::node::Node;
pub use self::observation::{NodeObservations, ObservedPair};
pub use self::operator::{OperatorGrant, Role};
pub use self::server::{CaServer, NodeAct};
pub use self::token::{TokenId, TokenRecord};
pub use self::trial::{PolicyTrial, TriedPolicy};

/// Labels of an identity.
pub type Labels = BTreeMap<String, String>;

/// All labels of an identity together: bytes of keys and values.
pub const MAX_LABELS_BYTES: usize = 4096;
/// Labels of an identity.
pub const MAX_LABELS: usize = 128;
/// Where sessions are reached if an underlay address says nothing else.
pub const SESSION_PORT: u16 = 7250;

/// A policy document: opaque here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyDocument {
    /// Its name, unique in the registry.
    pub name: String,
    /// What the `policies` crate reads.
    pub text: String,
    /// One more at each change of the text.
    pub version: u64,
    /// When it was changed last (unix milliseconds).
    pub changed_at_ms: u64,
}

/// Checks the labels of an identity: few, small, and of characters that every
/// policy language can name.
pub fn check_labels(labels: &Labels) -> Result<(), Error> {
    let plain = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte))
    };
    for (key, value) in labels {
        let shown: String = format!("{key}={value}").chars().take(96).collect();
        if key.is_empty() || key.len() > 317 || value.len() > 253 || !plain(key) || !plain(value) {
            return Err(Error::invalid(
                format!("label {shown:?}"),
                "write KEY=VALUE with letters, digits and - _ . / : (key up to 317, value up to 253 bytes)",
            ));
        }
    }
    let bytes: usize = labels
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if labels.len() > MAX_LABELS || bytes > MAX_LABELS_BYTES {
        return Err(Error::invalid(
            "labels",
            format!(
                "{} labels with {bytes} bytes; at most {MAX_LABELS} labels and {MAX_LABELS_BYTES} bytes are signed",
                labels.len()
            ),
        ));
    }
    Ok(())
}

pub(crate) fn as_text<S: serde::Serializer>(
    value: &impl fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

pub(crate) fn as_optional_text<S: serde::Serializer>(
    value: &Option<SpiffeId>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

pub(crate) fn as_texts<T: fmt::Display, S: serde::Serializer>(
    values: &[T],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded() {
        let labels = |count: usize, size: usize| -> Labels {
            (0..count)
                .map(|n| (format!("k{n}"), "v".repeat(size)))
                .collect()
        };
        assert!(check_labels(&labels(20, 100)).is_ok());
        assert!(check_labels(&labels(129, 1)).is_err());
        assert!(check_labels(&labels(40, 200)).is_err());
        assert!(check_labels(&Labels::from([("a b".into(), "c".into())])).is_err());
    }
}
