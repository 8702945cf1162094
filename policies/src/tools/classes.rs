//! Workloads that no policy tells apart, together: so that thousands of replicas cost what a few kinds cost.

use std::collections::{HashMap, HashSet};

use crate::entry::{NAMED_PORT, Remote, Workload};
use crate::selector::{Condition, Peer, Peers, Selector};
use crate::set::PolicySet;
use crate::tools::flow::End;
use crate::tools::inventory::{Inventory, Known, short_name};

/// Workloads that are all alike to some sets of policies.
#[derive(Clone, Debug)]
pub(super) struct Class {
    /// The first of them.
    pub(super) end: End,
    /// How many others there are.
    pub(super) others: usize,
}

/// The known workloads by what the sets make of them; without any, one for each selector that the policies write.
pub(super) fn classes(sets: &[&PolicySet], inventory: &Inventory) -> Vec<Class> {
    let imagined;
    let known = match inventory.workloads.as_slice() {
        [] => {
            imagined = imagine(sets);
            imagined.as_slice()
        }
        known => known,
    };
    let mut classes: Vec<Class> = Vec::new();
    let mut places: HashMap<Vec<u64>, usize> = HashMap::new();
    for known in known {
        let signature = signature(sets, &known.workload);
        match places
            .get(&signature)
            .and_then(|place| classes.get_mut(*place))
        {
            Some(class) => class.others += 1,
            None => {
                places.insert(signature, classes.len());
                classes.push(Class {
                    end: known.end(),
                    others: 0,
                });
            }
        }
    }
    classes
}

/// Everything about a workload that a rule can see.
fn signature(sets: &[&PolicySet], workload: &Workload) -> Vec<u64> {
    let remote = Remote::Workload(workload.clone());
    let mut bits = Bits::default();
    for (_, document) in sets.iter().flat_map(|set| set.documents()) {
        for spec in &document.specs {
            bits.push(spec.subject.matches(workload));
            for rule in &spec.rules {
                bits.push(rule.matches(workload, &remote));
            }
        }
    }
    let ports = workload
        .labels
        .iter()
        .filter(|(key, _)| key.starts_with(NAMED_PORT));
    for (key, value) in ports {
        for byte in key.bytes().chain([0]).chain(value.bytes()).chain([0]) {
            bits.words.push(u64::from(byte));
        }
    }
    bits.words
}

#[derive(Default)]
struct Bits {
    words: Vec<u64>,
    used: u32,
}

impl Bits {
    fn push(&mut self, bit: bool) {
        if self.used.is_multiple_of(64) {
            self.words.push(0);
        }
        if let (Some(word), true) = (self.words.last_mut(), bit) {
            *word |= 1 << (self.used % 64);
        }
        self.used += 1;
    }
}

/// A workload for each selector: the least labels that it selects; and one without labels.
fn imagine(sets: &[&PolicySet]) -> Vec<Known> {
    let mut all = Vec::new();
    let mut names = HashSet::new();
    let mut add = |selector: &Selector| {
        all.extend(imagined(selector).filter(|known| names.insert(known.name.clone())));
    };
    add(&Selector::default());
    for (_, document) in sets.iter().flat_map(|set| set.documents()) {
        for spec in &document.specs {
            add(&spec.subject);
            for rule in &spec.rules {
                let Peers::Of(peers) = &rule.peers else {
                    continue;
                };
                for peer in peers {
                    if let Peer::Workloads(selector) = peer {
                        add(selector);
                    }
                }
            }
        }
    }
    all
}

/// A workload with the least labels that a selector selects; none if its requirements contradict each other.
pub(super) fn imagined(selector: &Selector) -> Option<Known> {
    let mut labels = std::collections::BTreeMap::new();
    for requirement in &selector.requirements {
        let value = match &requirement.is {
            Condition::In(values) => values.first()?.clone(),
            Condition::Exists => "any".to_owned(),
            Condition::NotIn(_) | Condition::Absent => continue,
        };
        labels.entry(requirement.key.clone()).or_insert(value);
    }
    let words: Vec<_> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let spiffe_id = spiffe::SpiffeId::new("spiffe://example.org/imagined").ok()?;
    let workload = Workload { spiffe_id, labels };
    // Requirements that contradict each other select nobody.
    if !selector.matches(&workload) {
        return None;
    }
    let name = match words.as_slice() {
        [] => "any other workload".to_owned(),
        words => words.join(","),
    };
    Some(Known {
        name,
        workload,
        addresses: Vec::new(),
        is_machine: false,
    })
}

/// What a class is called.
impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let alike = match self.others {
            0 => String::new(),
            others => format!(" (and {others} alike)"),
        };
        let name = match &self.end {
            End::Workload { name, workload } if name.is_empty() => short_name(&workload.spiffe_id),
            end => end.to_string(),
        };
        write!(f, "{name}{alike}")
    }
}
