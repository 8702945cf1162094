//! What lies in the maps that an agent adopts is not its own: any bytes there are read without a panic, and
//! clearing leaves nothing of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::path::Path;

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, lpm_trie::Key},
};
use handfast_bpf::*;
use handfast_layout as layout;
use support::Pins;

/// xorshift64: the same bytes each time.
struct Bytes(u64);

impl Bytes {
    fn take<T: Pod>(&mut self) -> T {
        let mut bytes = vec![0u8; size_of::<T>()];
        for byte in &mut bytes {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            // Few values, so that numbers meet each other and meanings.
            *byte = [0, 0, 1, 2, 3, 0x7f, 0xff, (self.0 >> 24) as u8][self.0 as usize >> 3 & 7];
        }
        // SAFETY: as long as a T, and a T is any bytes.
        unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
    }
}

fn pinned(directory: &Path, name: &str) -> MapData {
    MapData::from_pin(directory.join(name)).unwrap()
}

fn fill<K: Pod, V: Pod>(directory: &Path, name: &str, random: &mut Bytes) {
    let map = Map::HashMap(pinned(directory, name));
    let mut map = HashMap::<_, K, V>::try_from(map).unwrap();
    for _ in 0..50 {
        let (key, value) = (random.take::<K>(), random.take::<V>());
        map.insert(key, value, 0).unwrap();
    }
}

fn fill_prefixes<K: Pod, V: Pod>(directory: &Path, name: &str, random: &mut Bytes) {
    let map = Map::LpmTrie(pinned(directory, name));
    let mut map = LpmTrie::<_, K, V>::try_from(map).unwrap();
    let most = size_of::<K>() as u32 * 8;
    for _ in 0..50 {
        let key = Key::new(random.take::<u32>() % (most + 1), random.take::<K>());
        map.insert(&key, random.take::<V>(), 0).unwrap();
    }
}

#[test]
fn any_bytes_in_adopted_maps_are_read_and_cleared_without_a_panic() {
    for seed in 1..=20u64 {
        let Some(pins) = Pins::new(&format!("adoption-{seed}")) else {
            return;
        };
        let directory = pins.path();
        let mut options = Options::new(directory);
        options.sizes = Sizes {
            connections: 256,
            events: 4096,
        };
        drop(Kernel::open(options.clone()).unwrap());
        let random = &mut Bytes(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        fill::<u32, layout::Endpoint>(directory, "endpoints", random);
        fill::<u32, u32>(directory, "interfaces", random);
        fill::<u32, layout::Usage>(directory, "usage", random);
        fill::<layout::Addr, layout::Local>(directory, "locals", random);
        fill::<layout::Addr, layout::Remote>(directory, "remotes", random);
        fill::<u32, layout::Session>(directory, "sessions", random);
        fill::<layout::AnnouncedKey, layout::Announced>(directory, "announced", random);
        fill::<u32, layout::Identity>(directory, "identities", random);
        fill::<layout::AuthKey, layout::Auth>(directory, "auth", random);
        fill::<layout::ConnectionKey, layout::Connection>(directory, "connections", random);
        fill::<layout::HoldKey, layout::HoldValue>(directory, "holds", random);
        fill::<u32, layout::Parked>(directory, "parked", random);
        fill_prefixes::<layout::Addr, layout::Prefix>(directory, "prefixes", random);
        fill_prefixes::<layout::PolicyKey, layout::PolicyValue>(directory, "policy", random);
        fill_prefixes::<layout::Addr, u32>(directory, "cidrs", random);
        for (name, settings) in [("config", true), ("revision", false)] {
            let map = Map::Array(pinned(directory, name));
            if settings {
                let mut map = Array::<_, layout::Config>::try_from(map).unwrap();
                map.set(0, random.take::<layout::Config>(), 0).unwrap();
            } else {
                let mut map = Array::<_, u64>::try_from(map).unwrap();
                map.set(0, u64::MAX, 0).unwrap();
            }
        }

        let kernel = Kernel::open(options).unwrap();
        assert!(kernel.adopted());
        let tables = kernel.tables();
        tables.settings().unwrap();
        tables.set_settings(&Settings::default()).unwrap();
        let endpoints = tables.endpoints().unwrap();
        for (id, _) in &endpoints {
            tables.policy(*id).unwrap();
        }
        tables.keep_interfaces(&[7].into()).unwrap();
        tables.locals().unwrap();
        tables.prefixes().unwrap();
        tables.announced().unwrap();
        tables.cidrs().unwrap();
        tables.pairs().unwrap();
        tables.connections().unwrap();
        tables.counters().unwrap();
        tables.held_total().unwrap();
        tables.collect(boot_time()).unwrap();
        tables.sweep_epoch(PeerNumber(1), Epoch(2)).unwrap();
        tables.reset_holds().unwrap();
        tables.clear().unwrap();
        assert_eq!(tables.pairs().unwrap().len(), 0);
        assert_eq!(tables.connections().unwrap().len(), 0);
        assert_eq!(tables.locals().unwrap().len(), 0);
        assert_eq!(tables.prefixes().unwrap().len(), 0);
    }
}
