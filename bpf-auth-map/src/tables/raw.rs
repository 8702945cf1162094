//! One shape for all maps: shared access, errors that name the map, absence is no error.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key},
};

use crate::Error;

/// Takes a map of a loaded object.
pub(super) fn take<T: TryFrom<Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<T, Error> {
    let map = object
        .take_map(name)
        .ok_or(Error::Missing { what: "map", name })?;
    T::try_from(map).map_err(|source| Error::Map { map: name, source })
}

/// The lock guards single system calls: a panic in between leaves nothing half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the kernel said that there is no such entry.
fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}

macro_rules! table {
    ($(#[$doc:meta])* $name:ident, $map:ident, $key:ty) => {
        $(#[$doc])*
        pub(super) struct $name<K, V> {
            name: &'static str,
            capacity: u32,
            map: Mutex<$map<MapData, K, V>>,
        }

        impl<K: Pod, V: Pod> $name<K, V> {
            pub(super) fn take(object: &mut Ebpf, name: &'static str) -> Result<Self, Error> {
                let error = |source| Error::Map { map: name, source };
                let capacity = match object.map(name) {
                    Some(Map::HashMap(data) | Map::LpmTrie(data)) => data.info().map_err(error)?.max_entries(),
                    _ => return Err(Error::Missing { what: "map", name }),
                };
                Ok(Self { name, capacity, map: take::<$map<MapData, K, V>>(object, name)?.into() })
            }

            /// Its name, and how many entries it can have.
            pub(super) fn capacity(&self) -> (&'static str, u32) {
                (self.name, self.capacity)
            }

            pub(super) fn set(&self, key: &$key, value: &V) -> Result<(), Error> {
                lock(&self.map).insert(key, value, 0).map_err(|source| self.error(source))
            }

            /// Absent already is as good as removed.
            pub(super) fn remove(&self, key: &$key) -> Result<(), Error> {
                match lock(&self.map).remove(key) {
                    Err(error) if !is_absent(&error) => Err(self.error(error)),
                    _ => Ok(()),
                }
            }

            /// A listing is no snapshot: entries that come or go meanwhile may be missed.
            pub(super) fn all<T>(&self, read: impl Fn($key, V) -> T) -> Result<Vec<T>, Error> {
                let map = lock(&self.map);
                let mut all = Vec::new();
                for entry in map.iter() {
                    match entry {
                        Ok((key, value)) => all.push(read(key, value)),
                        Err(error) if is_absent(&error) => {}
                        Err(error) => return Err(self.error(error)),
                    }
                }
                Ok(all)
            }

            /// Removes all entries that are not to stay.
            pub(super) fn retain(&self, stays: impl Fn(&$key, &V) -> bool) -> Result<(), Error> {
                let gone = self.all(|key, value| (!stays(&key, &value)).then_some(key))?;
                gone.iter().flatten().try_for_each(|key| self.remove(key))
            }

            pub(super) fn clear(&self) -> Result<(), Error> {
                self.retain(|_, _| false)
            }

            fn error(&self, source: MapError) -> Error {
                Error::Map { map: self.name, source }
            }
        }
    };
}

table!(
    /// A map by exact key.
    Hash, HashMap, K
);
table!(
    /// A map by longest prefix.
    Lpm, LpmTrie, Key<K>
);

impl<K: Pod, V: Pod> Lpm<K, V> {
    /// Entries as they are understood. What is not was written by no agent: it is removed.
    pub(super) fn understood<T>(
        &self,
        read: impl Fn(&Key<K>, &V) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut understood = Vec::new();
        for entry in self.all(|key, value| read(&key, &value).ok_or(key))? {
            match entry {
                Ok(entry) => understood.push(entry),
                Err(key) => {
                    tracing::warn!(map = self.name, "an entry that no agent writes is removed");
                    self.remove(&key)?;
                }
            }
        }
        Ok(understood)
    }
}
