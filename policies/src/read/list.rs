//! Lists of documents, as `kubectl get --output yaml` prints several objects.

use crate::read::value;
use crate::read::yaml::{self, Node, Value};

/// Kinds of lists.
const LISTS: [&str; 5] = [
    "List",
    "CiliumNetworkPolicyList",
    "CiliumClusterwideNetworkPolicyList",
    "NetworkPolicyList",
    "HandfastPolicyList",
];
/// All that a list may have: of another field nobody here knows what it means for the items.
const FIELDS: [&str; 4] = ["apiVersion", "kind", "metadata", "items"];

/// The documents that a document stands for: the items of a list, or itself.
pub(crate) fn items(node: &Node) -> &[Node] {
    listed(node).unwrap_or(std::slice::from_ref(node))
}

/// The items of a text that is one list, each as a text (JSON) of its own; none for any other text.
pub(crate) fn texts(text: &str) -> Option<Vec<String>> {
    let documents = yaml::parse(text).ok()?;
    let [document] = documents.as_slice() else {
        return None;
    };
    let items = listed(document)?.iter();
    items
        .map(|item| serde_json::to_string_pretty(&value::json(item)).ok())
        .collect()
}

fn listed(node: &Node) -> Option<&[Node]> {
    let Value::Map(fields) = &node.value else {
        return None;
    };
    let field = |name: &str| fields.iter().find(|(key, _)| key.text == name);
    let (_, kind) = field("kind")?;
    let (_, items) = field("items")?;
    let is_list =
        matches!(&kind.value, Value::Scalar { text, .. } if LISTS.contains(&text.as_str()));
    let is_plain = fields
        .iter()
        .all(|(key, _)| FIELDS.contains(&key.text.as_str()));
    match &items.value {
        Value::List(items) if is_list && is_plain => Some(items),
        _ => None,
    }
}
