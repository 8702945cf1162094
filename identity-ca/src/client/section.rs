//! A part of what an agent knows, as updates bring it: all of it at first, then what has changed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::model::{Entry, Node};

/// What an update says of nodes or entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Section<T> {
    /// These, and no others.
    All(Vec<T>),
    /// What else was known stays as it was.
    Changes {
        /// New, or other than before.
        changed: Vec<T>,
        /// Keys of those that are gone.
        removed: Vec<String>,
    },
}

/// What has a key by which later updates name it.
pub trait Keyed {
    /// Unique in its section.
    fn key(&self) -> &str;
}

impl Keyed for Entry {
    fn key(&self) -> &str {
        &self.id
    }
}

impl Keyed for Node {
    fn key(&self) -> &str {
        self.name.as_str()
    }
}

impl<T: Keyed> Keyed for Arc<T> {
    fn key(&self) -> &str {
        (**self).key()
    }
}

/// For who needs to know no more than which there are.
impl Keyed for String {
    fn key(&self) -> &str {
        self
    }
}

impl<T> Section<T> {
    /// Those that are named as they are now.
    pub fn named(&self) -> &[T] {
        match self {
            Self::All(named) | Self::Changes { changed: named, .. } => named,
        }
    }

    /// The same of another type.
    pub fn map<U>(&self, convert: impl Fn(&T) -> U) -> Section<U> {
        match self {
            Self::All(all) => Section::All(all.iter().map(convert).collect()),
            Self::Changes { changed, removed } => Section::Changes {
                changed: changed.iter().map(convert).collect(),
                removed: removed.clone(),
            },
        }
    }
}

impl<T: Keyed> Section<T> {
    /// What is known once this has been taken in. What was known keeps its place, what is new comes last.
    pub fn onto(self, known: impl IntoIterator<Item = T>) -> Vec<T> {
        let (changed, removed) = match self {
            Self::All(all) => return all,
            Self::Changes { changed, removed } => (changed, removed),
        };
        let mut known: Vec<T> = known.into_iter().collect();
        let removed: HashSet<String> = removed.into_iter().collect();
        known.retain(|one| !removed.contains(one.key()));
        let places: HashMap<String, usize> = known
            .iter()
            .enumerate()
            .map(|(place, one)| (one.key().to_owned(), place))
            .collect();
        for one in changed {
            match places
                .get(one.key())
                .and_then(|place| known.get_mut(*place))
            {
                Some(before) => *before = one,
                None => known.push(one),
            }
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct One(&'static str, u8);

    impl Keyed for One {
        fn key(&self) -> &str {
            self.0
        }
    }

    #[test]
    fn all_replaces_what_was_known_and_changes_keep_the_rest() {
        let known = [One("a", 1), One("b", 1), One("c", 1)];
        let all = Section::All(vec![One("z", 1)]);
        assert_eq!(all.onto(known.clone()), [One("z", 1)]);
        let changes = Section::Changes {
            changed: vec![One("d", 2), One("b", 2)],
            removed: vec!["a".to_owned(), "unknown".to_owned()],
        };
        let now = [One("b", 2), One("c", 1), One("d", 2)];
        assert_eq!(changes.onto(known), now);
    }
}
