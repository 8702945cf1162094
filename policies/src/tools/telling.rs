//! Which labels tell a workload from the others of its namespace.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use spiffe::SpiffeId;

use crate::entry::NAMED_PORT;
use crate::read::{NAMESPACE, NAMESPACE_LABELS};
use crate::tools::inventory::{Inventory, Known};

/// Labels that usually say what a workload is, the best first.
const USUAL: [&str; 6] = [
    "app.kubernetes.io/name",
    "k8s-app",
    "app",
    "name",
    "run",
    "component",
];

/// A namespace, and a label in it.
type Place<'a> = (Option<&'a str>, &'a str, &'a str);

/// Who has which label; looked at once, however many workloads are asked about.
pub(super) struct Telling<'a> {
    /// The one identity that has a label; none if several have it.
    owners: HashMap<Place<'a>, Option<&'a SpiffeId>>,
}

impl<'a> Telling<'a> {
    pub(super) fn new(inventory: &'a Inventory) -> Self {
        let mut owners: HashMap<Place<'a>, Option<&SpiffeId>> = HashMap::new();
        for known in &inventory.workloads {
            let id = &known.workload.spiffe_id;
            for (key, value) in own(known) {
                match owners.entry((home(known), key, value)) {
                    Entry::Vacant(free) => {
                        free.insert(Some(id));
                    }
                    Entry::Occupied(mut taken) if *taken.get() != Some(id) => {
                        taken.insert(None);
                    }
                    Entry::Occupied(_) => {}
                }
            }
        }
        Self { owners }
    }

    /// The one label that tells it from all of other identities, if there is one; otherwise all that it has.
    pub(super) fn labels(&self, known: &Known) -> BTreeMap<String, String> {
        let tells = |(key, value): &(&str, &str)| {
            self.owners.get(&(home(known), *key, *value)) == Some(&Some(&known.workload.spiffe_id))
        };
        let usual = USUAL
            .iter()
            .filter_map(|usual| own(known).find(|(key, _)| key == usual));
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        match usual.chain(own(known)).find(tells) {
            Some(label) => BTreeMap::from([owned(label)]),
            None => own(known).map(owned).collect(),
        }
    }
}

fn home(known: &Known) -> Option<&str> {
    known.workload.labels.get(NAMESPACE).map(String::as_str)
}

/// Labels that are its own, and not its namespace's or its ports'.
fn own(known: &Known) -> impl Iterator<Item = (&str, &str)> {
    let labels = known.workload.labels.iter();
    labels
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .filter(|(key, _)| {
            !key.starts_with(NAMED_PORT) && !key.starts_with(NAMESPACE_LABELS) && *key != NAMESPACE
        })
}
