//! Label selectors as Kubernetes and Cilium write them, and the namespace that they are bound to.

use std::collections::BTreeSet;

use crate::read::cursor::{Cursor, Schema};
use crate::selector::{Condition, PeerSelector, Requirement, Selector};

/// The label that says which namespace a workload is in.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";

/// What a namespace's own labels begin with on its workloads.
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";

/// The longest label key (Kubernetes: 253 for the prefix, a slash, 63) with Cilium's prefix for namespaces.
const MAX_KEY: usize = 317 + NAMESPACE_LABELS.len();

/// The most values that one expression lists.
const MAX_VALUES: usize = 1000;

static SELECTOR: Schema = Schema {
    known: &["matchLabels", "matchExpressions"],
    refused: &[],
};

static EXPRESSION: Schema = Schema {
    known: &["key", "operator", "values"],
    refused: &[],
};

/// The namespace that a document's selectors stay in; without one they reach every workload of the mesh.
pub(crate) struct Scope {
    namespace: Option<String>,
}

impl Scope {
    pub(crate) fn new(namespace: Option<String>) -> Self {
        Self { namespace }
    }

    fn bind(&self, selector: &mut Selector) {
        if let Some(namespace) = &self.namespace {
            selector.requirements.push(equals(NAMESPACE, namespace));
        }
    }
}

/// A label's name with the prefix that said where it comes from.
enum Key {
    /// `k8s:`, `any:` or nothing: a signed label.
    Signed(String),
    /// `reserved:`.
    Reserved(String),
}

/// The workloads that a policy is for: never outside its namespace.
pub(crate) fn subject(cursor: &Cursor<'_>, scope: &Scope) -> Option<Selector> {
    let (mut selector, reserved) = read(cursor)?;
    if reserved.is_some() {
        cursor.error("reserved: labels stand for what is no workload; a policy selects workloads");
        return None;
    }
    if let Some(namespace) = &scope.namespace {
        let elsewhere = selector
            .requirements
            .iter()
            .any(|requirement| match &requirement.is {
                Condition::In(values) => {
                    requirement.key == NAMESPACE && !values.contains(namespace)
                }
                _ => false,
            });
        if elsewhere {
            cursor.error(format!(
                "selects another namespace than the policy's own, {namespace}, so it selects nothing"
            ));
        }
    }
    scope.bind(&mut selector);
    Some(selector)
}

/// The workloads at the other end: of the policy's namespace, unless the selector names namespaces itself.
pub(crate) fn peer(cursor: &Cursor<'_>, scope: &Scope) -> Option<PeerSelector> {
    let (mut selector, reserved) = read(cursor)?;
    if let Some(reserved) = reserved {
        if !selector.requirements.is_empty() {
            cursor.error("a reserved: label stands alone: nothing that has one has other labels");
            return None;
        }
        return Some(reserved);
    }
    let names_namespaces = selector.requirements.iter().any(|requirement| {
        requirement.key == NAMESPACE || requirement.key.starts_with(NAMESPACE_LABELS)
    });
    if !names_namespaces {
        scope.bind(&mut selector);
    }
    Some(PeerSelector::Workloads(selector))
}

/// All requirements, and the reserved label if there is one.
fn read(cursor: &Cursor<'_>) -> Option<(Selector, Option<PeerSelector>)> {
    let fields = cursor.fields(&SELECTOR)?;
    let mut requirements = Vec::new();
    let mut reserved = None;
    let mut good = true;
    if let Some(labels) = fields.get("matchLabels") {
        for (written, cursor) in labels.any_fields()?.all() {
            let value = cursor.string();
            match key(&cursor, &written.text) {
                Some(Key::Signed(key)) => match value.filter(|value| is_value(&cursor, value)) {
                    Some(value) => requirements.push(equals(&key, value)),
                    None => good = false,
                },
                Some(Key::Reserved(name)) => match reserved_peer(&cursor, &name) {
                    Some(peer) if reserved.is_none() => reserved = Some(peer),
                    Some(_) => {
                        cursor.error("nothing has two reserved: labels: write two list items");
                        good = false;
                    }
                    None => good = false,
                },
                None => good = false,
            }
        }
    }
    if let Some(expressions) = fields.get("matchExpressions") {
        for item in expressions.items()? {
            match expression(&item) {
                Some(requirement) => requirements.push(requirement),
                None => good = false,
            }
        }
    }
    good.then_some((Selector { requirements }, reserved))
}

fn equals(key: &str, value: &str) -> Requirement {
    Requirement {
        key: key.to_owned(),
        is: Condition::In(BTreeSet::from([value.to_owned()])),
    }
}

fn reserved_peer(cursor: &Cursor<'_>, name: &str) -> Option<PeerSelector> {
    match name {
        "host" => Some(PeerSelector::Host),
        "world" => Some(PeerSelector::World),
        _ => {
            cursor.error("unknown reserved: label: use reserved:host or reserved:world");
            None
        }
    }
}

#[derive(Clone, Copy)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

fn expression(cursor: &Cursor<'_>) -> Option<Requirement> {
    let fields = cursor.fields(&EXPRESSION)?;
    let key_cursor = fields.need("key", "name the label");
    let operator = fields.need("operator", "use In, NotIn, Exists or DoesNotExist");
    let (key_cursor, operator) = (key_cursor?, operator?);
    let Key::Signed(key) = key(&key_cursor, key_cursor.string()?)? else {
        key_cursor.error("reserved: labels stand in matchLabels only, such as reserved:host: \"\"");
        return None;
    };
    let operator = operator.choice(
        "operator",
        &[
            ("In", Operator::In),
            ("NotIn", Operator::NotIn),
            ("Exists", Operator::Exists),
            ("DoesNotExist", Operator::DoesNotExist),
        ],
    )?;
    let listed = match fields.get("values") {
        Some(values) => values_of(&values)?,
        None => BTreeSet::new(),
    };
    let is = match (operator, listed.is_empty()) {
        (Operator::In, false) => Condition::In(listed),
        (Operator::NotIn, false) => Condition::NotIn(listed),
        (Operator::Exists, true) => Condition::Exists,
        (Operator::DoesNotExist, true) => Condition::Absent,
        (Operator::In | Operator::NotIn, true) => {
            cursor.error("values is missing: In and NotIn compare with a list of values");
            return None;
        }
        (Operator::Exists | Operator::DoesNotExist, false) => {
            cursor.error("Exists and DoesNotExist take no values: remove them, or use In or NotIn");
            return None;
        }
    };
    Some(Requirement { key, is })
}

fn values_of(cursor: &Cursor<'_>) -> Option<BTreeSet<String>> {
    let items = cursor.items()?;
    if items.len() > MAX_VALUES {
        cursor.error(format!("more than {MAX_VALUES} values"));
        return None;
    }
    let read = |item: &Cursor<'_>| {
        item.string()
            .filter(|value| is_value(item, value))
            .map(str::to_owned)
    };
    items.iter().map(read).collect()
}

fn key(cursor: &Cursor<'_>, written: &str) -> Option<Key> {
    let (source, name) = written.split_once(':').unwrap_or(("any", written));
    let character = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if name.is_empty() || name.len() > MAX_KEY || !name.chars().all(character) {
        cursor.error("not a label's name: use letters, digits, -, _, . and /");
        return None;
    }
    match source {
        "k8s" | "any" => Some(Key::Signed(name.to_owned())),
        "reserved" => Some(Key::Reserved(name.to_owned())),
        _ => {
            cursor.error(format!(
                "unknown label source {source:?}: use k8s:, any:, reserved: or none"
            ));
            None
        }
    }
}

/// Whether a workload could carry this value (Kubernetes: 63 of these characters, or empty).
fn is_value(cursor: &Cursor<'_>, value: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    let inner = |c: char| edge(c) || matches!(c, '-' | '_' | '.');
    let good = value.is_empty()
        || (value.len() <= 63
            && value.chars().all(inner)
            && value.starts_with(edge)
            && value.ends_with(edge));
    if !good {
        cursor.error(
            "not a label's value: use at most 63 letters, digits, -, _ and ., a letter or digit first and last",
        );
    }
    good
}
