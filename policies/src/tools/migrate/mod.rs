//! From CiliumNetworkPolicies that require authentication to HandfastPolicies, with what changes on the way.

mod tree;

use serde_norway::{Mapping, Value};

use crate::model::{Authentication, Kind};
use crate::read::items;
use crate::read::yaml::{self, Node};
use crate::set::{PolicySet, ReadError, Source};
use crate::tools::diff::{Change, diff};
use crate::tools::flow::Outcome;
use crate::tools::inventory::Inventory;
use tree::{LISTS, Lost, each_spec, keep_proofs, open, plain, reduce, strip, text};

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
        for node in documents.iter().flat_map(items) {
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
    let Value::Mapping(mut document) = plain(node) else {
        return None;
    };
    forget_the_cluster(&mut document);
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

/// What only the API server writes: put back, it would be refused, or believed.
fn forget_the_cluster(document: &mut Mapping) {
    document.remove("status");
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_mapping_mut) {
        for key in [
            "creationTimestamp",
            "generation",
            "managedFields",
            "resourceVersion",
            "selfLink",
            "uid",
        ] {
            metadata.remove(key);
        }
        if let Some(Value::Mapping(annotations)) = metadata.get_mut("annotations") {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
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
