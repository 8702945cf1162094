//! From CiliumNetworkPolicies that require authentication to HandfastPolicies, with what changes on the way.

use serde_norway::{Mapping, Value};

use crate::model::{Authentication, Kind};
use crate::read::value;
use crate::read::yaml::{self, Node};
use crate::set::{PolicySet, ReadError, Source};
use crate::tools::diff::{Change, diff};
use crate::tools::flow::Outcome;
use crate::tools::inventory::Inventory;

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
const LISTS: [(&str, &str); 4] = [
    ("ingress", "ingress"),
    ("ingressDeny", "ingress"),
    ("egress", "egress"),
    ("egressDeny", "egress"),
];

/// Who decides about allow and deny afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcer {
    /// Cilium, by the stripped policies; handfast asks for proofs and closes nothing.
    Cilium,
    /// handfast alone; Cilium's policies are to be deleted.
    Handfast,
}

/// What comes out.
#[derive(Clone, Debug, Default)]
pub struct Migration {
    /// HandfastPolicies, as one YAML text of several documents.
    pub own: String,
    /// The CiliumNetworkPolicies without `authentication`; empty where handfast is to be the enforcer.
    pub stripped: String,
    /// How many policies were migrated.
    pub policies: usize,
    /// What the user must know.
    pub warnings: Vec<String>,
    /// Flows of which old and new policies say different things.
    pub changes: Vec<Change>,
}

/// One document on its way.
struct Moving<'a> {
    file: &'a str,
    line: usize,
    name: String,
    document: Mapping,
}

/// Migrates every CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy; other documents are left alone.
///
/// # Errors
/// What cannot be read, or, without an enforcer, every policy of which two would be.
pub fn migrate(
    sources: &[Source],
    inventory: &Inventory,
    enforcer: Option<Enforcer>,
) -> Result<Migration, Vec<ReadError>> {
    let mut migration = Migration::default();
    let mut moving = Vec::new();
    for source in sources {
        let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
        let documents = yaml::parse(text).map_err(|malformed| {
            vec![ReadError {
                file: source.name.clone(),
                line: malformed.at.line,
                column: malformed.at.column,
                field: String::new(),
                message: malformed.message,
            }]
        })?;
        for node in &documents {
            match take(&source.name, node) {
                Some(document) => moving.push(document),
                None => migration.warnings.push(format!(
                    "{}:{}: no CiliumNetworkPolicy: left as it is",
                    source.name, node.at.line
                )),
            }
        }
    }
    let Some(enforcer) = enforcer else {
        return Err(moving.iter().map(Moving::two_enforcers).collect());
    };
    let mut before = String::new();
    for document in &moving {
        let mut reduced = document.document.clone();
        let mut lost = Vec::new();
        each_spec(&mut reduced, |spec| reduce(spec, &mut lost));
        for what in &lost {
            migration
                .warnings
                .push(document.says(&what.for_whom(enforcer)));
        }
        before.push_str(&text(&reduced));
        let own = document.own(&reduced, enforcer, &lost);
        if own.is_empty() && enforcer == Enforcer::Cilium {
            migration
                .warnings
                .push(document.says("it asks for no proof, so nothing of it moves to handfast"));
        }
        migration.own.extend(own.iter().map(text));
        if enforcer == Enforcer::Cilium {
            let mut stripped = document.document.clone();
            each_spec(&mut stripped, |spec| strip(spec, &["authentication"]));
            migration.stripped.push_str(&text(&stripped));
        }
        migration.policies += 1;
    }
    let old = read("before", before).map_err(|errors| original_errors(sources, errors))?;
    let mut after = migration.own.clone();
    if enforcer == Enforcer::Cilium {
        for document in &moving {
            let mut reduced = document.document.clone();
            each_spec(&mut reduced, |spec| reduce(spec, &mut Vec::new()));
            each_spec(&mut reduced, |spec| strip(spec, &["authentication"]));
            after.push_str(&text(&reduced));
        }
    }
    let new = read("after", after).map_err(|errors| original_errors(sources, errors))?;
    migration.changes = diff(&old, &new, inventory);
    widenings(&old, inventory, enforcer, &mut migration.warnings);
    Ok(migration)
}

/// A rule that requires authentication is an allow as well: says of each what nothing else allows.
fn widenings(
    old: &PolicySet,
    inventory: &Inventory,
    enforcer: Enforcer,
    warnings: &mut Vec<String>,
) {
    for (number, rule) in old.rules() {
        if rule.authentication != Some(Authentication::Required) {
            continue;
        }
        let alone: Vec<_> = diff(&old.without(number), old, inventory)
            .into_iter()
            .filter(|change| change.before == Outcome::Denied)
            .collect();
        let Some(first) = alone.first() else {
            continue;
        };
        let more = match alone.len() {
            1 => String::new(),
            more => format!(" and {} more", more - 1),
        };
        let until = match enforcer {
            Enforcer::Cilium => {
                "; stripped of it, Cilium lets this through without a proof: put the HandfastPolicies in force first"
            }
            Enforcer::Handfast => "",
        };
        warnings.push(format!(
            "{} {}: it requires authentication, and is an allow as well: nothing else allows {} -> {} {} {}{more}{until}",
            rule.policy, rule.field, first.from, first.to, first.protocol, first.ports
        ));
    }
}

fn take<'a>(file: &'a str, node: &Node) -> Option<Moving<'a>> {
    let Value::Mapping(document) = plain(node) else {
        return None;
    };
    let kind = document.get("kind").and_then(Value::as_str)?;
    let kinds = [
        Kind::CiliumNetworkPolicy.to_string(),
        Kind::CiliumClusterwideNetworkPolicy.to_string(),
    ];
    let metadata = document.get("metadata").and_then(Value::as_mapping);
    let name = metadata
        .and_then(|metadata| metadata.get("name"))
        .and_then(Value::as_str)
        .unwrap_or("unnamed")
        .to_owned();
    kinds.iter().any(|known| known == kind).then_some(Moving {
        file,
        line: node.at.line,
        name,
        document,
    })
}

/// What a policy says that handfast cannot.
struct Lost {
    what: String,
    direction: &'static str,
    /// A whole rule, not only a part of one.
    is_rule: bool,
}

impl Lost {
    fn for_whom(&self, enforcer: Enforcer) -> String {
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

impl Moving<'_> {
    fn says(&self, what: &str) -> String {
        format!("{}:{}: {}: {what}", self.file, self.line, self.name)
    }

    fn two_enforcers(&self) -> ReadError {
        ReadError {
            file: self.file.to_owned(),
            line: self.line,
            column: 1,
            field: self.name.clone(),
            message: "Cilium and handfast would both enforce this policy: say --enforcer cilium (Cilium allows and \
                      denies as before, handfast asks for proofs), or --enforcer handfast (handfast does both, and \
                      the CiliumNetworkPolicy is deleted)"
                .to_owned(),
        }
    }

    /// The HandfastPolicies that take its place: one for each spec.
    fn own(&self, reduced: &Mapping, enforcer: Enforcer, lost: &[Lost]) -> Vec<Mapping> {
        let mut specs = Vec::new();
        let mut reduced = reduced.clone();
        each_spec(&mut reduced, |spec| specs.push(spec.clone()));
        let mut documents = Vec::new();
        let several = specs.len() > 1;
        for (index, mut spec) in specs.into_iter().enumerate() {
            spec.remove("labels");
            match enforcer {
                Enforcer::Cilium => {
                    keep_proofs(&mut spec);
                    if !LISTS.iter().any(|(list, _)| spec.contains_key(*list)) {
                        continue;
                    }
                    open(&mut spec, &["ingress", "egress"]);
                }
                Enforcer::Handfast => {
                    let rules = lost.iter().filter(|lost| lost.is_rule);
                    let directions: Vec<_> = rules.map(|lost| lost.direction).collect();
                    open(&mut spec, &directions);
                }
            }
            let mut metadata = Mapping::new();
            let name = match several {
                true => format!("{}-{}", self.name, index + 1),
                false => self.name.clone(),
            };
            metadata.insert("name".into(), name.into());
            let old = self.document.get("metadata").and_then(Value::as_mapping);
            if let Some(namespace) = old.and_then(|old| old.get("namespace")) {
                metadata.insert("namespace".into(), namespace.clone());
            }
            let mut document = Mapping::new();
            document.insert("apiVersion".into(), "handfast.io/v1alpha1".into());
            document.insert("kind".into(), "HandfastPolicy".into());
            document.insert("metadata".into(), metadata.into());
            document.insert("spec".into(), spec.into());
            documents.push(document);
        }
        documents
    }
}

fn each_spec(document: &mut Mapping, mut act: impl FnMut(&mut Mapping)) {
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
fn strip(spec: &mut Mapping, fields: &[&str]) {
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
fn reduce(spec: &mut Mapping, lost: &mut Vec<Lost>) {
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
fn keep_proofs(spec: &mut Mapping) {
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
fn open(spec: &mut Mapping, directions: &[&str]) {
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

fn plain(node: &Node) -> Value {
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

fn text(document: &Mapping) -> String {
    // A mapping that was read from YAML can be written as YAML.
    let yaml = serde_norway::to_string(document).unwrap_or_default();
    format!("---\n{yaml}")
}

fn read(name: &str, text: String) -> Result<PolicySet, Vec<ReadError>> {
    PolicySet::read(vec![Source {
        name: name.to_owned(),
        text,
    }])
}

/// The same errors with the places that the user knows, where the originals have them, too.
fn original_errors(sources: &[Source], reduced: Vec<ReadError>) -> Vec<ReadError> {
    let Err(original) = PolicySet::read(sources.to_vec()) else {
        return reduced;
    };
    let same: Vec<_> = original
        .into_iter()
        .filter(|error| reduced.iter().any(|other| other.message == error.message))
        .collect();
    if same.is_empty() { reduced } else { same }
}
