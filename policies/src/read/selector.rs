//! Label selectors as Kubernetes and Cilium write them, and the namespace that they are bound to.

use std::collections::BTreeSet;

use crate::read::cursor::Cursor;
use crate::read::shape::{Item, Schema, Shape, field};
use crate::selector::{Condition, Peer, Requirement, Selector};

/// The label that says which namespace a workload is in.
pub(crate) const NAMESPACE: &str = "io.kubernetes.pod.namespace";

/// What a namespace's own labels begin with on its workloads.
pub(crate) const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";

/// The label that every namespace has, with its own name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The longest label key (Kubernetes: 253 for the prefix, a slash, 63) with Cilium's prefix for namespaces.
const MAX_KEY: usize = 317 + NAMESPACE_LABELS.len();

/// The most values that one expression lists.
const MAX_VALUES: usize = 1000;

pub(crate) static SELECTOR: Schema = Schema {
    about: "Workloads whose labels meet every requirement; {} selects all.",
    known: &[
        field(
            "matchLabels",
            Shape::Labels,
            "Labels and the values they must have.",
        ),
        field(
            "matchExpressions",
            Shape::List(Item::Map(&EXPRESSION), 0, usize::MAX),
            "Conditions on labels.",
        ),
    ],
    refused: &[],
};

static EXPRESSION: Schema = Schema {
    about: "A condition on one label.",
    known: &[
        field("key", Shape::Text, "The label.").required(),
        field(
            "operator",
            Shape::Choice(&["In", "NotIn", "Exists", "DoesNotExist"]),
            "NotIn holds for an absent label, too.",
        )
        .required(),
        field(
            "values",
            Shape::List(Item::Text, 0, MAX_VALUES),
            "For In and NotIn.",
        ),
    ],
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

/// How label keys are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Syntax {
    /// With or without a source before them, as Cilium has it.
    Cilium,
    /// Plain, as in Kubernetes.
    Kubernetes,
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
    let (mut selector, reserved) = read(cursor, Syntax::Cilium)?;
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
pub(crate) fn peer(cursor: &Cursor<'_>, scope: &Scope) -> Option<Peer> {
    let (mut selector, reserved) = read(cursor, Syntax::Cilium)?;
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
    Some(Peer::Workloads(selector))
}

/// Pods of the policy's namespace, as a NetworkPolicy selects them.
pub(crate) fn pods(cursor: &Cursor<'_>, scope: &Scope) -> Option<Selector> {
    let (mut selector, _) = read(cursor, Syntax::Kubernetes)?;
    scope.bind(&mut selector);
    Some(selector)
}

/// Pods of the policy's namespace, whatever their labels.
pub(crate) fn every_pod(scope: &Scope) -> Selector {
    let mut selector = Selector::default();
    scope.bind(&mut selector);
    selector
}

/// Pods of the namespaces that one selector finds, and among them those that the other does.
pub(crate) fn pods_of_namespaces(
    namespaces: &Cursor<'_>,
    pods: Option<&Cursor<'_>>,
) -> Option<Selector> {
    let (mut selector, _) = read(namespaces, Syntax::Kubernetes)?;
    for requirement in &mut selector.requirements {
        requirement.key = label_of_namespace(&requirement.key);
    }
    // Whatever is in no namespace is in none that could be selected.
    selector.requirements.push(Requirement {
        key: NAMESPACE.to_owned(),
        is: Condition::Exists,
    });
    if let Some(pods) = pods {
        let (pods, _) = read(pods, Syntax::Kubernetes)?;
        selector.requirements.extend(pods.requirements);
    }
    Some(selector)
}

/// The workload's label that carries a label of its namespace.
fn label_of_namespace(key: &str) -> String {
    match key {
        // Kubernetes keeps this one equal to the namespace's name, which every workload carries.
        NAMESPACE_NAME => NAMESPACE.to_owned(),
        _ => format!("{NAMESPACE_LABELS}{key}"),
    }
}

/// All requirements, and the reserved label if there is one.
fn read(cursor: &Cursor<'_>, syntax: Syntax) -> Option<(Selector, Option<Peer>)> {
    let fields = cursor.fields(&SELECTOR)?;
    let mut requirements = Vec::new();
    let mut reserved = None;
    let mut good = true;
    if let Some(labels) = fields.get("matchLabels") {
        for (written, cursor) in labels.any_fields()?.all() {
            let value = cursor.string();
            match key(&cursor, &written.text, syntax) {
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
            match expression(&item, syntax) {
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

fn reserved_peer(cursor: &Cursor<'_>, name: &str) -> Option<Peer> {
    match name {
        "host" => Some(Peer::Host),
        "world" => Some(Peer::World),
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

fn expression(cursor: &Cursor<'_>, syntax: Syntax) -> Option<Requirement> {
    let fields = cursor.fields(&EXPRESSION)?;
    let key_cursor = fields.need("key", "name the label");
    let operator = fields.need("operator", "use In, NotIn, Exists or DoesNotExist");
    let (key_cursor, operator) = (key_cursor?, operator?);
    let Key::Signed(key) = key(&key_cursor, key_cursor.string()?, syntax)? else {
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
    if cursor.items()?.len() > MAX_VALUES {
        cursor.error(format!("more than {MAX_VALUES} values"));
        return None;
    }
    let read = |item: &Cursor<'_>| {
        item.string()
            .filter(|value| is_value(item, value))
            .map(str::to_owned)
    };
    cursor.each(read).map(|values| values.into_iter().collect())
}

fn key(cursor: &Cursor<'_>, written: &str, syntax: Syntax) -> Option<Key> {
    let (source, name) = match syntax {
        Syntax::Cilium => written.split_once(':').unwrap_or(("any", written)),
        Syntax::Kubernetes => ("any", written),
    };
    let character = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if name.is_empty() || name.len() > MAX_KEY || !name.chars().all(character) {
        cursor.error("not a label's name: use letters, digits, -, _, . and /");
        return None;
    }
    match source {
        "k8s" | "any" => Some(Key::Signed(match name.strip_prefix(NAMESPACE_LABELS) {
            Some(label) => label_of_namespace(label),
            None => name.to_owned(),
        })),
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
