//! Another program on our hooks: ahead of a gate it is named, and the gate comes first again; behind it nobody minds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{
    EbpfLoader,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
    util::KernelVersion,
};
use handfast_bpf::*;
use support::{OBJECT, Pins, lab::Namespace};

/// Somebody else's program on an interface's way out, as long as the value lives. Its name is one of ours that
/// has no business there.
fn foreign(pins: &Pins, name: &str, place: TcAttachOptions) -> SchedClassifierLink {
    let mut object = EbpfLoader::new()
        .default_map_pin_directory(pins.path())
        .load(OBJECT)
        .unwrap();
    let program: &mut SchedClassifier = object
        .program_mut("hold_ingress")
        .unwrap()
        .try_into()
        .unwrap();
    program.load().unwrap();
    let id = program
        .attach_with_options(name, TcAttachType::Egress, place)
        .unwrap();
    program.take_link(id).unwrap()
}

fn running(name: &str) -> Vec<String> {
    let (_, programs) = SchedClassifier::query_tcx(name, TcAttachType::Egress).unwrap();
    let names = programs.iter().map(|program| program.name_as_str());
    names.map(|name| name.unwrap().to_owned()).collect()
}

/// Waits for these programs: the kernel lets go of a pinned link a moment after its pin is gone.
#[track_caller]
fn comes_to(name: &str, wanted: &[&str]) {
    let end = Instant::now() + Duration::from_secs(30);
    while running(name) != wanted {
        assert!(Instant::now() < end, "{:?}, not {wanted:?}", running(name));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_program_that_somebody_puts_ahead_of_a_gate_is_named_and_the_gate_comes_first_again() {
    if KernelVersion::current().unwrap() < KernelVersion::new(6, 6, 0) {
        eprintln!("skipped: this kernel has no tcx, and cannot be asked who runs where");
        return;
    }
    let (Some(ours), Some(theirs)) = (Pins::new("precedence"), Pins::new("precedence-other"))
    else {
        return;
    };
    let namespace = Namespace::new();
    namespace.sh("ip link add hf-pre0 type veth peer name hf-pre1");
    let ifindex = namespace.ifindex("hf-pre0");
    let kernel = Arc::new(Kernel::open(Options::new(ours.path())).unwrap());
    namespace.run(move || {
        kernel.attach_wire(ifindex).unwrap();
        let last = foreign(
            &theirs,
            "hf-pre0",
            TcAttachOptions::TcxOrder(LinkOrder::last()),
        );
        comes_to("hf-pre0", &["wire_egress", "hold_ingress"]);
        assert!(kernel.put_first().unwrap().is_empty());

        let first = foreign(
            &theirs,
            "hf-pre0",
            TcAttachOptions::TcxOrder(LinkOrder::first()),
        );
        let order = ["hold_ingress", "wire_egress", "hold_ingress"];
        comes_to("hf-pre0", &order);
        let found = kernel.put_first().unwrap();
        let [(preceded, None)] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(preceded.interface, "hf-pre0");
        assert_eq!(preceded.attachment.program, "wire_egress");
        assert_eq!(preceded.by.as_deref(), Some("hold_ingress"));
        let order = ["wire_egress", "hold_ingress", "hold_ingress"];
        comes_to("hf-pre0", &order);
        // So it is at a start: what an earlier agent has left is put first.
        drop(first);
        let first = foreign(
            &theirs,
            "hf-pre0",
            TcAttachOptions::TcxOrder(LinkOrder::first()),
        );
        kernel.attach_wire(ifindex).unwrap();
        comes_to("hf-pre0", &order);
        assert!(kernel.put_first().unwrap().is_empty());
        drop((first, last));
        comes_to("hf-pre0", &["wire_egress"]);

        // Detached by hand (`bpftool link detach`): the pin is there, and nothing runs.
        let pin = kernel.attached().unwrap();
        assert_eq!(pin.len(), 2, "{pin:?}");
        kernel.detach_wire(ifindex).unwrap();
        comes_to("hf-pre0", &[]);
        assert!(
            kernel.put_first().unwrap().is_empty(),
            "nothing is asked for"
        );
    });
}

/// The filters of clsact on an interface's way out, in the order in which `tc` says that they run.
fn filters(name: &str) -> Vec<String> {
    let words = ["filter", "show", "dev", name, "egress"];
    let said = Command::new("tc").args(words).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let said = String::from_utf8(said.stdout).unwrap();
    let handle = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "handle");
        words.nth(1).map(str::to_owned)
    };
    said.lines().filter_map(handle).collect()
}

/// A filter of somebody else's, of the first preference as ours are.
fn foreign_filter(pins: &Pins, name: &str, number: u16) -> SchedClassifierLink {
    let options = NlOptions {
        priority: 1,
        handle: TcHandle::new(0, number),
        classid: None,
    };
    foreign(pins, name, TcAttachOptions::Netlink(options))
}

#[test]
fn a_filter_that_somebody_puts_ahead_of_a_gate_by_clsact_is_named_and_the_gate_comes_first_again() {
    let (Some(ours), Some(theirs)) = (Pins::new("clsact"), Pins::new("clsact-other")) else {
        return;
    };
    let namespace = Namespace::new();
    namespace.sh("ip link add hf-cls0 type veth peer name hf-cls1");
    let ifindex = namespace.ifindex("hf-cls0");
    let mut options = Options::new(ours.path());
    options.clsact = true;
    let kernel = Arc::new(Kernel::open(options).unwrap());
    namespace.run(move || {
        const NAME: &str = "hf-cls0";
        kernel.attach_wire(ifindex).unwrap();
        assert_eq!(filters(NAME), ["0x6866"]);
        assert!(kernel.put_first().unwrap().is_empty());

        // The kernel runs the last of a preference first; a gate that comes back takes turns with itself.
        let mut others = Vec::new();
        for (number, order) in [
            (1, ["0x6867", "0x1"].as_slice()),
            (2, &["0x6866", "0x2", "0x1"]),
            (3, &["0x6867", "0x3", "0x2", "0x1"]),
        ] {
            others.push(foreign_filter(&theirs, NAME, number));
            assert_eq!(filters(NAME).first(), Some(&format!("{number:#x}")));
            let found = kernel.put_first().unwrap();
            let [(preceded, None)] = found.as_slice() else {
                panic!("{found:?}")
            };
            assert_eq!(preceded.interface, NAME);
            assert_eq!(preceded.attachment.program, "wire_egress");
            assert_eq!(preceded.by.as_deref(), Some("hold_ingress"));
            assert_eq!(filters(NAME), order);
            assert!(kernel.put_first().unwrap().is_empty());
        }
        // So it is at a start, and one that is first stays where it is.
        others.push(foreign_filter(&theirs, NAME, 4));
        for _ in 0..2 {
            kernel.attach_wire(ifindex).unwrap();
            assert_eq!(filters(NAME), ["0x6866", "0x4", "0x3", "0x2", "0x1"]);
        }
        drop(others);
        assert_eq!(filters(NAME), ["0x6866"]);

        // With its qdisc a gate goes, and comes back.
        let words = ["qdisc", "del", "dev", NAME, "clsact"];
        assert!(Command::new("tc").args(words).status().unwrap().success());
        let found = kernel.put_first().unwrap();
        assert!(
            found
                .iter()
                .all(|(found, refused)| found.by.is_none() && refused.is_none()),
            "{found:?}"
        );
        assert_eq!(filters(NAME), ["0x6866"]);
        kernel.detach_wire(ifindex).unwrap();
        assert_eq!(filters(NAME), Vec::<String>::new());
    });
}
