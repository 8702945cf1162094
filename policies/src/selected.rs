//! A workload with the policies that select it: looked up once, asked as often as one likes.

use std::sync::Arc;

use crate::document::{Denies, Rule, Spec};
use crate::entry::{Entry, Pairing, Remote, Workload};
use crate::file::File;
use crate::local::LocalPolicy;
use crate::model::Direction;
use crate::pairing;

/// A workload, and what a set of policies says of it. It holds what it needs of the set, and stays an answer of that
/// set when there is a newer one.
#[derive(Clone, Debug)]
pub struct Selected {
    workload: Workload,
    specs: Vec<Place>,
    denies: Denies,
}

/// Where a part of a policy stands.
#[derive(Clone, Debug)]
struct Place {
    file: Arc<File>,
    document: usize,
    spec: usize,
}

impl Place {
    fn spec(&self) -> Option<&Spec> {
        self.file.documents.get(self.document)?.specs.get(self.spec)
    }
}

impl Selected {
    pub(crate) fn new(workload: Workload, files: &[Arc<File>]) -> Self {
        let mut specs = Vec::new();
        let mut denies = Denies::default();
        for file in files {
            for (document, read) in file.documents.iter().enumerate() {
                let about = read.specs.iter().enumerate();
                let about = about.filter(|(_, spec)| spec.subject.matches(&workload));
                for (place, spec) in about {
                    denies.ingress |= spec.denies.ingress;
                    denies.egress |= spec.denies.egress;
                    specs.push(Place {
                        file: Arc::clone(file),
                        document,
                        spec: place,
                    });
                }
            }
        }
        Self {
            workload,
            specs,
            denies,
        }
    }

    /// Who it is about.
    #[must_use]
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// What the policies say of it.
    #[must_use]
    pub fn policy(&self) -> LocalPolicy<'_> {
        LocalPolicy::new(&self.workload, self.specs.iter().filter_map(Place::spec))
    }

    /// What the gates enforce toward and from a remote.
    #[must_use]
    pub fn entries(&self, remote: &Remote) -> Vec<Entry> {
        let speaks = self
            .rules()
            .any(|rule| rule.matches(&self.workload, remote));
        match speaks {
            true => self.policy().entries(remote),
            false => Vec::new(),
        }
    }

    /// Whether some flow between the two is allowed on both ends, so that proving them ahead pays.
    #[must_use]
    pub fn pairing(&self, other: &Self) -> Pairing {
        // Most have nothing to do with each other, and all are asked about.
        if !self.may_open(other) && !other.may_open(self) {
            return Pairing::default();
        }
        pairing::between(&self.policy(), &other.policy())
    }

    fn may_open(&self, to: &Self) -> bool {
        self.may_pass(Direction::Egress, to) && to.may_pass(Direction::Ingress, self)
    }

    /// Whether a flow in this direction may pass this end, for all that is known without looking at ports and verdicts.
    fn may_pass(&self, direction: Direction, other: &Self) -> bool {
        let speaks = |rule: &Rule| {
            rule.direction == direction && rule.is_between(&self.workload, &other.workload)
        };
        !self.denies.by_default(direction) || self.rules().any(speaks)
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        let specs = self.specs.iter().filter_map(Place::spec);
        specs.flat_map(|spec| &spec.rules)
    }
}
