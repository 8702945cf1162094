//! What two versions of a set of policies do not have in common.

use crate::document::Spec;
use crate::entry::{Remote, Workload};

/// What two versions of a set do not have in common.
#[derive(Debug)]
pub struct Changed<'a> {
    pub(crate) specs: Vec<&'a Spec>,
}

impl Changed<'_> {
    /// Whether nothing is different.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    /// Whether any rule that is different speaks of the remote, for some workload of `home`'s trust domain.
    pub(crate) fn speak_of(&self, home: &Workload, remote: &Remote) -> bool {
        let mut rules = self.specs.iter().flat_map(|spec| &spec.rules);
        rules.any(|rule| rule.matches(home, remote))
    }

    /// Whether what they say of this workload may be different, and for which remotes.
    #[must_use]
    pub fn of_workload<'a>(&'a self, local: &'a Workload) -> Option<ChangedFor<'a>> {
        let specs = self.specs.iter().copied();
        let specs: Vec<_> = specs.filter(|spec| spec.subject.matches(local)).collect();
        (!specs.is_empty()).then_some(ChangedFor { local, specs })
    }
}

/// What two versions of a set do not have in common about one workload.
#[derive(Debug)]
pub struct ChangedFor<'a> {
    local: &'a Workload,
    specs: Vec<&'a Spec>,
}

impl ChangedFor<'_> {
    /// Whether the entries toward and from this remote may be different.
    #[must_use]
    pub fn concerns(&self, remote: &Remote) -> bool {
        let mut rules = self.specs.iter().flat_map(|spec| &spec.rules);
        rules.any(|rule| rule.matches(self.local, remote))
    }
}
