//! A map that the snapshot has as a list, which is made anew only when the map has been touched: a step changes one of
//! several, and each may have thousands of entries.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};

/// The map. Whoever may change it, by a mutable reference, counts as having done so.
#[derive(Debug)]
pub(super) struct Kept<K, V, T> {
    map: BTreeMap<K, V>,
    list: OnceLock<Arc<Vec<T>>>,
}

/// An entry of the map as the snapshot has it.
pub(super) trait Entry<K, V> {
    fn of(key: &K, value: &V) -> Self;
}

impl<K, V, T: Entry<K, V>> Kept<K, V, T> {
    /// In the order of the keys.
    pub(super) fn list(&self) -> Arc<Vec<T>> {
        let make = || self.made_anew().into();
        self.list.get_or_init(make).clone()
    }

    fn made_anew(&self) -> Vec<T> {
        self.map
            .iter()
            .map(|(key, value)| T::of(key, value))
            .collect()
    }
}

impl<K, V, T> Default for Kept<K, V, T> {
    fn default() -> Self {
        Self {
            map: BTreeMap::new(),
            list: OnceLock::new(),
        }
    }
}

impl<K, V, T> Deref for Kept<K, V, T> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

impl<K, V, T> DerefMut for Kept<K, V, T> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.list.take();
        &mut self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Entry<u8, u8> for (u8, u8) {
        fn of(key: &u8, value: &u8) -> Self {
            (*key, *value)
        }
    }

    #[test]
    fn the_list_is_the_same_until_the_map_changes_and_then_has_the_change() {
        let mut kept: Kept<u8, u8, (u8, u8)> = Kept::default();
        kept.insert(2, 20);
        let first = kept.list();
        assert!(kept.contains_key(&2));
        assert!(Arc::ptr_eq(&first, &kept.list()));
        kept.insert(1, 10);
        assert_eq!(*kept.list(), [(1, 10), (2, 20)]);
        if let Some(value) = kept.get_mut(&2) {
            *value = 21;
        }
        assert_eq!(*kept.list(), [(1, 10), (2, 21)]);
        assert_eq!(*first, [(2, 20)]);
    }
}
