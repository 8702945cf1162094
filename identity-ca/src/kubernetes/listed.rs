//! What a watch has shown so far: objects by key, and whether all of them were seen.
//!
//! A watch that breaks lists everything anew. Until that list is whole nothing counts as gone: an API server that is
//! away, or that answers in pieces, deletes nothing.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use kube::runtime::watcher::Event;

/// Objects of one kind, in the form that is kept of them.
#[derive(Debug)]
pub(super) struct Listed<K, V> {
    objects: HashMap<K, V>,
    /// Keys that the list under way has shown.
    listing: Option<HashSet<K>>,
    complete: bool,
}

impl<K, V> Default for Listed<K, V> {
    fn default() -> Self {
        Self {
            objects: HashMap::new(),
            listing: None,
            complete: false,
        }
    }
}

impl<K: Clone + Eq + Hash, V: PartialEq> Listed<K, V> {
    /// Takes an event in, and returns the keys of what it changed, with what was there before. `read` says what is
    /// kept of an object; none for one that does not count.
    pub(super) fn take<T>(
        &mut self,
        event: Event<T>,
        key: impl Fn(&T) -> Option<K>,
        read: impl FnOnce(T) -> Option<V>,
    ) -> Vec<(K, Option<V>)> {
        match event {
            Event::Init => {
                self.listing = Some(HashSet::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                let Some(key) = key(&object) else {
                    return Vec::new();
                };
                if let Some(listing) = &mut self.listing {
                    listing.insert(key.clone());
                }
                self.put(key, read(object))
            }
            Event::Apply(object) => match key(&object) {
                Some(key) => self.put(key, read(object)),
                None => Vec::new(),
            },
            Event::Delete(object) => match key(&object) {
                Some(key) => self.put(key, None),
                None => Vec::new(),
            },
            Event::InitDone => {
                self.complete = true;
                let shown = self.listing.take().unwrap_or_default();
                let gone: Vec<K> = self
                    .objects
                    .keys()
                    .filter(|key| !shown.contains(key))
                    .cloned()
                    .collect();
                gone.into_iter()
                    .flat_map(|key| self.put(key, None))
                    .collect()
            }
        }
    }

    fn put(&mut self, key: K, value: Option<V>) -> Vec<(K, Option<V>)> {
        if self.objects.get(&key) == value.as_ref() {
            return Vec::new();
        }
        let before = match value {
            Some(value) => self.objects.insert(key.clone(), value),
            None => self.objects.remove(&key),
        };
        vec![(key, before)]
    }

    /// Was everything seen at least once?
    pub(super) fn complete(&self) -> bool {
        self.complete
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.objects.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.objects.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Object = (&'static str, u32);

    fn take(listed: &mut Listed<&'static str, u32>, event: Event<Object>) -> Vec<&'static str> {
        let changed = listed.take(event, |object| Some(object.0), |object| Some(object.1));
        let mut keys: Vec<_> = changed.into_iter().map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn what_a_new_list_does_not_show_is_gone_only_when_the_list_is_whole() {
        let mut listed = Listed::default();
        assert!(take(&mut listed, Event::Init).is_empty());
        assert_eq!(take(&mut listed, Event::InitApply(("a", 1))), ["a"]);
        assert_eq!(take(&mut listed, Event::InitApply(("b", 1))), ["b"]);
        assert!(!listed.complete());
        assert!(take(&mut listed, Event::InitDone).is_empty());
        assert!(listed.complete());
        // 410: everything again, half of it only so far.
        take(&mut listed, Event::Init);
        assert!(take(&mut listed, Event::InitApply(("a", 1))).is_empty());
        assert_eq!(listed.get(&"b"), Some(&1));
        // The list broke off and begins again.
        take(&mut listed, Event::Init);
        take(&mut listed, Event::InitApply(("b", 2)));
        assert_eq!(take(&mut listed, Event::InitDone), ["a"]);
        assert_eq!(listed.get(&"b"), Some(&2));
    }

    #[test]
    fn what_is_seen_again_unchanged_is_no_change() {
        let mut listed = Listed::default();
        take(&mut listed, Event::Init);
        take(&mut listed, Event::InitDone);
        assert_eq!(take(&mut listed, Event::Apply(("a", 1))), ["a"]);
        assert!(take(&mut listed, Event::Apply(("a", 1))).is_empty());
        assert_eq!(take(&mut listed, Event::Apply(("a", 2))), ["a"]);
        assert_eq!(take(&mut listed, Event::Delete(("a", 2))), ["a"]);
        assert!(take(&mut listed, Event::Delete(("a", 2))).is_empty());
    }
}
