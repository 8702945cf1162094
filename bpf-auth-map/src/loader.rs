//! The object, made ready for the kernel: with an endpoint's numbers in it, and the maps that lie in a directory.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Mutex, PoisonError},
};

use aya::{Ebpf, EbpfLoader};

use crate::{EndpointId, Error, Sizes};

/// The compiled programs, built from `ebpf/` and committed.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/handfast.bpf.o"));

/// One for the process, made when it is first needed: to make one reads and parses all that the kernel knows of its
/// own types, some megabytes, of which our programs need nothing.
static LOADER: Mutex<Option<Loader>> = Mutex::new(None);

struct Loader {
    aya: EbpfLoader<'static>,
    /// What the loader refers to for as long as it lives: each number once, some bytes for each endpoint.
    numbers: HashSet<&'static u32>,
}

impl Loader {
    fn new() -> Self {
        let mut aya = EbpfLoader::new();
        // Lets go of what was parsed.
        aya.btf(None);
        Self {
            aya,
            numbers: HashSet::new(),
        }
    }

    fn number(&mut self, number: u32) -> &'static u32 {
        if let Some(known) = self.numbers.get(&number) {
            return known;
        }
        let kept = Box::leak(Box::new(number));
        self.numbers.insert(kept);
        kept
    }
}

/// Loads the object with the pinned maps of a directory; those that are missing are made, in these sizes. The
/// programs are not in the kernel yet. `header_len`: bytes of link header before a packet.
///
/// # Errors
/// A map could not be made, or one that lies there is of another kind.
pub(crate) fn load(
    directory: &Path,
    sizes: Sizes,
    id: EndpointId,
    header_len: u32,
) -> Result<Ebpf, Error> {
    let mut loader = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
    let loader = loader.get_or_insert_with(Loader::new);
    let (endpoint, link_len) = (loader.number(id.0), loader.number(header_len));
    Ok(loader
        .aya
        .default_map_pin_directory(directory)
        .map_max_entries("connections", sizes.connections)
        .map_max_entries("events", sizes.events)
        .override_global("ENDPOINT", endpoint, true)
        .override_global("LINK_LEN", link_len, true)
        .load(OBJECT)?)
}
