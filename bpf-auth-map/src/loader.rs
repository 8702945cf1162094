//! The object, made ready for the kernel: with some numbers in it, and the maps that lie in a directory.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use aya::{Ebpf, EbpfLoader};

use crate::{Error, Options, types::to_addr};

/// The compiled programs, built from `ebpf/` and committed.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/handfast.bpf.o"));

/// One for the process, made when it is first needed: to make one reads and parses all that the kernel knows of its
/// own types, some megabytes, of which our programs need nothing.
static LOADER: Mutex<Option<Loader>> = Mutex::new(None);

struct Loader {
    aya: EbpfLoader<'static>,
    /// What the loader refers to for as long as it lives: each number once, some bytes for each host endpoint.
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

/// Loads the object with the pinned maps of a directory; those that are missing are made, in the sizes wanted. The
/// programs are not in the kernel yet. `header_len`: bytes of link header before a packet.
///
/// # Errors
/// A map could not be made, or one that lies there is of another kind.
pub(crate) fn load(options: &Options, header_len: u32) -> Result<Ebpf, Error> {
    load_with(options, header_len, [0; 5])
}

/// The same for a host endpoint, whose sockets are to use these addresses: the first of each family.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_host(options: &Options, addresses: &[IpAddr]) -> Result<Ebpf, Error> {
    let mut words = [0; 5];
    let [v4, v6 @ ..] = &mut words;
    for address in addresses.iter().rev() {
        match address {
            IpAddr::V4(address) => *v4 = u32::from_ne_bytes(address.octets()),
            IpAddr::V6(_) => *v6 = to_addr(*address).words(),
        }
    }
    load_with(options, 0, words)
}

fn load_with(options: &Options, header_len: u32, [v4, v6 @ ..]: [u32; 5]) -> Result<Ebpf, Error> {
    let mut loader = LOADER.lock().unwrap_or_else(PoisonError::into_inner);
    let loader = loader.get_or_insert_with(Loader::new);
    let link_len = loader.number(header_len);
    let places = loader.number(options.sizes.connections);
    let (v4, v6) = (loader.number(v4), v6.map(|word| loader.number(word)));
    let [a, b, c, d] = v6;
    Ok(loader
        .aya
        .default_map_pin_directory(&options.bpf_dir)
        .map_max_entries("connections", options.sizes.connections)
        .map_max_entries("events", options.sizes.events)
        .override_global("LINK_LEN", link_len, true)
        .override_global("PLACES", places, true)
        .override_global("SOURCE_V4", v4, true)
        .override_global("SOURCE_V6_0", a, true)
        .override_global("SOURCE_V6_1", b, true)
        .override_global("SOURCE_V6_2", c, true)
        .override_global("SOURCE_V6_3", d, true)
        .load(OBJECT)?)
}
