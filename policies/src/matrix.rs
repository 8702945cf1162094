//! The entries of every local workload toward every remote, computed piece by piece: a change costs what it concerns.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::entry::{Entry, Remote, Workload};
use crate::local::LocalPolicy;
use crate::model::Direction;
use crate::selected::Selected;
use crate::set::PolicySet;

/// Local workloads, remotes and policies; `L` and `R` are what the caller calls them.
///
/// It holds no entries: whoever asks keeps them where they are enforced.
#[derive(Clone, Debug)]
pub struct Matrix<L, R> {
    set: Arc<PolicySet>,
    locals: BTreeMap<L, Local>,
    remotes: BTreeMap<R, Remote>,
}

#[derive(Clone, Debug)]
struct Local {
    selected: Selected,
    closed: Closed,
}

/// In which directions what no rule allows is denied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// What the workload receives.
    pub ingress: bool,
    /// What it sends.
    pub egress: bool,
}

/// What one change makes of the enforced entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update<L, R> {
    /// Local workloads whose default deny is now this.
    pub closed: Vec<(L, Closed)>,
    /// Pairs whose entries are now these; other pairs are as they were.
    pub pairs: Vec<(L, R, Vec<Entry>)>,
}

impl<L, R> Default for Matrix<L, R> {
    fn default() -> Self {
        Self {
            set: Arc::default(),
            locals: BTreeMap::new(),
            remotes: BTreeMap::new(),
        }
    }
}

impl<L, R> Default for Update<L, R> {
    fn default() -> Self {
        Self {
            closed: Vec::new(),
            pairs: Vec::new(),
        }
    }
}

impl Closed {
    fn of(policy: &LocalPolicy) -> Self {
        Self {
            ingress: policy.selected(Direction::Ingress),
            egress: policy.selected(Direction::Egress),
        }
    }

    /// Whether what no rule allows in this direction is denied.
    #[must_use]
    pub fn is(self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

impl<L: Ord + Copy, R: Ord + Copy> Matrix<L, R> {
    /// The policies in force.
    #[must_use]
    pub fn set(&self) -> &Arc<PolicySet> {
        &self.set
    }

    /// The local workloads, in order.
    pub fn locals(&self) -> impl Iterator<Item = L> + '_ {
        self.locals.keys().copied()
    }

    /// A local workload.
    #[must_use]
    pub fn local(&self, id: L) -> Option<&Workload> {
        self.locals.get(&id).map(|local| local.selected.workload())
    }

    /// A remote.
    #[must_use]
    pub fn remote(&self, id: R) -> Option<&Remote> {
        self.remotes.get(&id)
    }

    /// The default deny of a local workload; none for one that is not known.
    #[must_use]
    pub fn closed(&self, id: L) -> Closed {
        self.locals
            .get(&id)
            .map(|local| local.closed)
            .unwrap_or_default()
    }

    /// What is enforced between a local workload and a remote, whether it is known or not; nothing for a workload
    /// that is not known.
    #[must_use]
    pub fn entries(&self, id: L, remote: &Remote) -> Vec<Entry> {
        let local = self.locals.get(&id);
        local.map_or_else(Vec::new, |local| local.selected.entries(remote))
    }

    /// A local workload that is new, or not who it was.
    pub fn set_local(&mut self, id: L, workload: Workload) -> Update<L, R> {
        let selected = self.set.select(workload);
        let closed = Closed::of(&selected.policy());
        self.locals.insert(id, Local { selected, closed });
        self.whole(id)
    }

    /// A local workload that went; its entries are the caller's to remove.
    pub fn remove_local(&mut self, id: L) {
        self.locals.remove(&id);
    }

    /// A remote that is new, or not who it was.
    pub fn set_remote(&mut self, id: R, remote: Remote) -> Update<L, R> {
        self.set_remotes(vec![(id, remote)])
    }

    /// The same of several.
    pub fn set_remotes(&mut self, remotes: Vec<(R, Remote)>) -> Update<L, R> {
        let mut update = Update::default();
        if remotes.is_empty() {
            return update;
        }
        for (local, known) in &self.locals {
            let pairs = remotes.iter();
            let pairs = pairs.map(|(id, remote)| (*local, *id, known.selected.entries(remote)));
            update.pairs.extend(pairs);
        }
        self.remotes.extend(remotes);
        update
    }

    /// A remote that went; its entries are the caller's to remove.
    pub fn remove_remote(&mut self, id: R) {
        self.remotes.remove(&id);
    }

    /// All entries of one local workload.
    #[must_use]
    pub fn whole(&self, id: L) -> Update<L, R> {
        let Some(local) = self.locals.get(&id) else {
            return Update::default();
        };
        let policy = local.selected.policy();
        let pairs = self.remotes.iter();
        Update {
            closed: vec![(id, local.closed)],
            pairs: pairs
                .map(|(remote, known)| (id, *remote, policy.entries(known)))
                .collect(),
        }
    }

    /// Other policies. If they are the next version of those in force ([`PolicySet::updated`]), only what is
    /// different between the two is computed.
    ///
    /// Where default deny has changed, every remote that is no workload is among the pairs.
    pub fn replace(&mut self, set: Arc<PolicySet>) -> Update<L, R> {
        let before = std::mem::replace(&mut self.set, set);
        let changed = self.set.changed_since(&before);
        let mut update = Update::default();
        let mut concerned: Option<Vec<(R, &Remote, bool)>> = None;
        for (id, local) in &mut self.locals {
            let workload = local.selected.workload().clone();
            let Some(here) = changed.of_workload(&workload) else {
                continue;
            };
            local.selected = self.set.select(workload.clone());
            let policy = local.selected.policy();
            let closed = Closed::of(&policy);
            let flipped = closed != local.closed;
            if flipped {
                local.closed = closed;
                update.closed.push((*id, closed));
            }
            // Which remotes the changed rules speak of does not depend on the local workload but for its trust
            // domain, which is one for all.
            let concerned = concerned.get_or_insert_with(|| {
                let remotes = self.remotes.iter();
                remotes
                    .map(|(number, remote)| (*number, remote, changed.speak_of(&workload, remote)))
                    .collect()
            });
            for (number, remote, spoken_of) in concerned.iter() {
                let outside = !matches!(remote, Remote::Workload(_));
                if (*spoken_of && here.concerns(remote)) || (flipped && outside) {
                    update.pairs.push((*id, *number, policy.entries(remote)));
                }
            }
        }
        update
    }
}
