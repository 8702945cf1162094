//! A workload with the policies that select it: looked up once, asked as often as one likes.

use std::sync::Arc;

use crate::document::Spec;
use crate::entry::{Pairing, Workload};
use crate::file::File;
use crate::local::LocalPolicy;
use crate::pairing;

/// A workload, and what a set of policies says of it. It holds what it needs of the set, and stays an answer of that
/// set when there is a newer one.
#[derive(Clone, Debug)]
pub struct Selected {
    workload: Workload,
    specs: Vec<Place>,
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
        for file in files {
            for (document, read) in file.documents.iter().enumerate() {
                for (spec, _) in read
                    .specs
                    .iter()
                    .enumerate()
                    .filter(|(_, spec)| spec.subject.matches(&workload))
                {
                    specs.push(Place {
                        file: Arc::clone(file),
                        document,
                        spec,
                    });
                }
            }
        }
        Self { workload, specs }
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

    /// Whether some flow between the two is allowed on both ends, so that proving them ahead pays.
    #[must_use]
    pub fn pairing(&self, other: &Self) -> Pairing {
        pairing::between(&self.policy(), &other.policy())
    }
}
