//! Cilium's documents as trees: what is taken out of them, and what is kept.

use serde_norway::{Mapping, Value};

use crate::read::value;
use crate::read::yaml::{self, Node};
use crate::tools::migrate::Enforcer;

/// Fields of an item of `toPorts` that look into requests or TLS: Cilium's alone.
const BEYOND_PORTS: [&str; 5] = [
    "rules",
    "serverNames",
    "terminatingTLS",
    "originatingTLS",
    "listener",
];

/// Fields that name far ends which handfast does not tell apart.
const BEYOND_PEERS: [&str; 8] = [
    "toFQDNs",
    "toServices",
    "fromNodes",
    "toNodes",
    "fromGroups",
    "toGroups",
    "fromRequires",
    "toRequires",
];

/// The lists of rules, and the direction of each.
pub(super) const LISTS: [(&str, &str); 4] = [
    ("ingress", "ingress"),
    ("ingressDeny", "ingress"),
    ("egress", "egress"),
    ("egressDeny", "egress"),
];

/// What a policy says that handfast cannot.
pub(super) struct Lost {
    what: String,
    pub(super) direction: &'static str,
    /// A whole rule, not only a part of one.
    pub(super) is_rule: bool,
}

impl Lost {
    pub(super) fn for_whom(&self, enforcer: Enforcer) -> String {
        let Self {
            what, direction, ..
        } = self;
        match (enforcer, self.is_rule) {
            (Enforcer::Cilium, _) => format!("{what}: Cilium goes on judging it"),
            (Enforcer::Handfast, false) => {
                format!(
                    "{what}: handfast allows every request on these ports, so this widens access"
                )
            }
            (Enforcer::Handfast, true) => format!(
                "{what}: handfast cannot say this, so the rule is left out and {direction} is not closed by the new \
                 policy: this widens access"
            ),
        }
    }
}

pub(super) fn each_spec(document: &mut Mapping, mut act: impl FnMut(&mut Mapping)) {
    if let Some(spec) = document.get_mut("spec").and_then(Value::as_mapping_mut) {
        act(spec);
    }
    if let Some(specs) = document.get_mut("specs").and_then(Value::as_sequence_mut) {
        for spec in specs.iter_mut().filter_map(Value::as_mapping_mut) {
            act(spec);
        }
    }
}

fn rules<'a>(spec: &'a mut Mapping, list: &str) -> Option<&'a mut Vec<Value>> {
    spec.get_mut(list).and_then(Value::as_sequence_mut)
}

/// Takes fields out of every rule.
pub(super) fn strip(spec: &mut Mapping, fields: &[&str]) {
    for (list, _) in LISTS {
        for rule in rules(spec, list).into_iter().flatten() {
            if let Some(rule) = rule.as_mapping_mut() {
                for field in fields {
                    rule.remove(*field);
                }
            }
        }
    }
}

/// Takes out what handfast cannot say, and tells of it.
pub(super) fn reduce(spec: &mut Mapping, lost: &mut Vec<Lost>) {
    for (list, direction) in LISTS {
        let Some(rules) = rules(spec, list) else {
            continue;
        };
        let mut number = 0;
        rules.retain_mut(|rule| {
            let at = format!("{list}[{number}]");
            number += 1;
            let Some(rule) = rule.as_mapping_mut() else {
                return true;
            };
            if let Some(field) = beyond_peers(rule) {
                lost.push(Lost {
                    what: format!("{at} has {field}"),
                    direction,
                    is_rule: true,
                });
                return false;
            }
            let items = rule.get_mut("toPorts").and_then(Value::as_sequence_mut);
            for item in items
                .into_iter()
                .flatten()
                .filter_map(Value::as_mapping_mut)
            {
                for field in BEYOND_PORTS {
                    if item.remove(field).is_some() {
                        lost.push(Lost {
                            what: format!("{at}.toPorts has {field}"),
                            direction,
                            is_rule: false,
                        });
                    }
                }
            }
            true
        });
    }
}

/// The field of a rule that names somebody whom handfast does not tell apart.
fn beyond_peers(rule: &Mapping) -> Option<String> {
    if let Some(field) = BEYOND_PEERS.iter().find(|field| rule.contains_key(**field)) {
        return Some((*field).to_owned());
    }
    for field in ["fromEntities", "toEntities"] {
        let entities = rule.get(field).and_then(Value::as_sequence);
        let mut entities = entities.into_iter().flatten().filter_map(Value::as_str);
        let known = |entity: &&str| crate::read::ENTITIES.contains(entity);
        if let Some(entity) = entities.find(|entity| !known(entity)) {
            return Some(format!("{field}: {entity}"));
        }
    }
    for field in ["fromCIDRSet", "toCIDRSet"] {
        let blocks = rule.get(field).and_then(Value::as_sequence);
        let mut blocks = blocks.into_iter().flatten().filter_map(Value::as_mapping);
        let group = |block: &Mapping| {
            block.contains_key("cidrGroupRef") || block.contains_key("cidrGroupSelector")
        };
        if blocks.any(group) {
            return Some(format!("{field} with a group"));
        }
    }
    None
}

/// Keeps only rules that ask for something about proofs.
pub(super) fn keep_proofs(spec: &mut Mapping) {
    for (list, _) in LISTS {
        if let Some(rules) = rules(spec, list) {
            rules.retain(|rule| rule.get("authentication").is_some());
            if rules.is_empty() {
                spec.remove(list);
            }
        }
    }
}

/// Leaves directions open for what no rule speaks of.
pub(super) fn open(spec: &mut Mapping, directions: &[&str]) {
    if directions.is_empty() {
        return;
    }
    let said = spec.get("enableDefaultDeny").and_then(Value::as_mapping);
    let mut said = said.cloned().unwrap_or_default();
    for direction in directions {
        said.insert((*direction).into(), false.into());
    }
    spec.insert("enableDefaultDeny".into(), said.into());
}

pub(super) fn plain(node: &Node) -> Value {
    match &node.value {
        yaml::Value::List(items) => Value::Sequence(items.iter().map(plain).collect()),
        yaml::Value::Map(entries) => {
            let fields = entries.iter();
            let fields = fields.map(|(key, node)| (Value::String(key.text.clone()), plain(node)));
            Value::Mapping(fields.collect())
        }
        yaml::Value::Scalar { .. } => {
            // Scalars have no order to lose.
            serde_norway::to_value(value::json(node)).unwrap_or(Value::Null)
        }
    }
}

pub(super) fn text(document: &Mapping) -> String {
    // A mapping that was read from YAML can be written as YAML.
    let yaml = serde_norway::to_string(document).unwrap_or_default();
    format!("---\n{yaml}")
}
