//! Every program passes this kernel's verifier, and maps are adopted or refused as they should be.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::os::fd::{AsFd, AsRawFd};

use aya::{
    maps::{Array, Map, MapData},
    programs::{Program, ProgramFd, ProgramInfo, SchedClassifier},
};
use handfast_bpf::{Epoch, Error, Kernel, Options, Pair, PairKey, PeerNumber, Settings, boot_time};
use support::{
    OBJECT, Pins,
    verifier::{STACK, stack_depth},
};

/// Every program, with the most instructions that any verifier may look at until it is sure: half more than
/// 6.1, the oldest and least patient, was seen to need. A change that goes beyond is a path too many.
const PROGRAMS: [(&str, u32); 8] = [
    ("from_endpoint", 26_000),
    ("to_endpoint", 52_000),
    ("to_tunnel", 75_000),
    ("from_tunnel", 75_000),
    ("hold_ingress", 4_000),
    ("hold_egress", 200),
    ("wire_ingress", 7_000),
    ("wire_egress", 24_000),
];

fn within_bounds(name: &str, program: ProgramInfo, fd: &ProgramFd, most: u32) {
    let verified = program.verified_instruction_count().unwrap();
    let stack = stack_depth(fd.as_fd().as_raw_fd());
    println!("{name}: {verified} instructions verified, {stack} bytes of stack");
    assert!(
        verified <= most,
        "{name}: {verified} instructions, {most} are its bound"
    );
    assert!(stack <= STACK, "{name}: {stack} bytes of stack");
}

#[test]
fn every_program_passes_the_verifier_within_its_bounds() {
    let Some(pins) = Pins::new("verifier") else {
        return;
    };
    let mut object = aya::EbpfLoader::new()
        .default_map_pin_directory(pins.path())
        .load(OBJECT)
        .unwrap();
    for (name, most) in PROGRAMS {
        let program: &mut SchedClassifier = object.program_mut(name).unwrap().try_into().unwrap();
        if let Err(error) = program.load() {
            panic!("{name}: {error}");
        }
        within_bounds(name, program.info().unwrap(), program.fd().unwrap(), most);
    }
}

/// The same for those of host endpoints, which are attached to control groups.
const HOST_PROGRAMS: [(&str, u32); 6] = [
    ("to_host", 60_000),
    ("from_host", 4_000),
    ("host_connect4", 300),
    ("host_connect6", 600),
    ("host_sendmsg4", 300),
    ("host_sendmsg6", 600),
];

#[test]
fn every_program_of_a_control_group_passes_the_verifier_within_its_bounds() {
    let Some(pins) = Pins::new("verifier-host") else {
        return;
    };
    let mut object = aya::EbpfLoader::new()
        .default_map_pin_directory(pins.path())
        .override_global("SOURCE_V4", &7u32, true)
        .override_global("SOURCE_V6_0", &7u32, true)
        .load(OBJECT)
        .unwrap();
    for (name, most) in HOST_PROGRAMS {
        let program = object.program_mut(name).unwrap();
        let loaded = match program {
            Program::CgroupSkb(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            other => panic!("{name}: {other:?}"),
        };
        if let Err(error) = loaded {
            panic!("{name}: {error}");
        }
        within_bounds(name, program.info().unwrap(), program.fd().unwrap(), most);
    }
}

#[test]
fn maps_of_another_layout_are_refused_and_left_alone() {
    let Some(pins) = Pins::new("layout") else {
        return;
    };
    drop(Kernel::open(Options::new(pins.path())).unwrap());
    let pin = pins.path().join("layout");
    let mut map = Array::<_, u32>::try_from(Map::Array(MapData::from_pin(&pin).unwrap())).unwrap();
    map.set(0, 99, 0).unwrap();
    let error = Kernel::open(Options::new(pins.path())).unwrap_err();
    assert!(matches!(error, Error::Layout { found: 99, .. }), "{error}");
    assert_eq!(map.get(&0, 0).unwrap(), 99);
    // A making that was cut short is begun anew.
    map.set(0, 0, 0).unwrap();
    let kernel = Kernel::open(Options::new(pins.path())).unwrap();
    assert!(!kernel.adopted());
    drop(kernel);
    assert!(Kernel::open(Options::new(pins.path())).unwrap().adopted());
}

#[test]
fn a_directory_outside_a_bpffs_is_refused() {
    let directory = std::env::temp_dir().join("hf-no-bpffs");
    let error = Kernel::open(Options::new(&directory)).unwrap_err();
    assert!(matches!(error, Error::NotBpffs { .. }), "{error}");
    assert!(!directory.exists());
}

#[test]
fn probing_leaves_nothing_behind() {
    let Some(_pins) = Pins::new("probe") else {
        return;
    };
    handfast_bpf::probe().unwrap();
    let left = format!("/sys/fs/bpf/handfast-probe-{}", std::process::id());
    assert!(!std::path::Path::new(&left).exists());
}

#[test]
fn tables_give_back_what_was_written() {
    let Some(pins) = Pins::new("tables") else {
        return;
    };
    let kernel = Kernel::open(Options::new(pins.path())).unwrap();
    let tables = kernel.tables();
    for prefix in ["10.1.0.0/16", "fd01::/16", "0.0.0.0/0"] {
        tables
            .set_prefix(prefix.parse().unwrap(), PeerNumber(5))
            .unwrap();
    }
    let mut prefixes = tables.prefixes().unwrap();
    prefixes.sort();
    let wanted =
        ["0.0.0.0/0", "10.1.0.0/16", "fd01::/16"].map(|p| (p.parse().unwrap(), PeerNumber(5)));
    assert_eq!(prefixes, wanted);
    tables.remove_prefix("0.0.0.0/0".parse().unwrap()).unwrap();
    tables.remove_prefix("0.0.0.0/0".parse().unwrap()).unwrap();
    assert_eq!(tables.prefixes().unwrap().len(), 2);

    let key = PairKey {
        local: 300.into(),
        remote: 400.into(),
        peer: 5.into(),
    };
    let pair = Pair {
        expires: boot_time(),
        epoch: Epoch(2),
    };
    tables.set_pair(key, pair).unwrap();
    assert_eq!(tables.pairs().unwrap(), [(key, pair)]);
    tables.sweep_epoch(PeerNumber(5), Epoch(3)).unwrap();
    assert_eq!(tables.pairs().unwrap(), []);
    assert!(
        tables
            .set_settings(&Settings {
                mark_shift: 29,
                ..Settings::default()
            })
            .is_err()
    );
}
