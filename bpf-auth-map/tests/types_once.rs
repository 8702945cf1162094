//! What a process reads once, however often it loads the gates: alone in its process, since others read it too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use handfast_bpf::{Kernel, Options};
use support::Pins;

#[test]
fn what_the_kernel_knows_of_its_own_types_is_read_once_however_often_gates_are_loaded() {
    let Ok(types) = std::fs::metadata("/sys/kernel/btf/vmlinux") else {
        eprintln!("skipped: this kernel tells nothing of its types");
        return;
    };
    let (Some(first), Some(second)) = (Pins::new("types-1"), Pins::new("types-2")) else {
        return;
    };
    let read = || {
        let counts = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        let bytes = counts.lines().find_map(|line| line.strip_prefix("rchar: "));
        bytes.unwrap().parse::<u64>().unwrap()
    };
    let begin = read();
    drop(Kernel::open(Options::new(first.path())).unwrap());
    let once = read();
    drop(Kernel::open(Options::new(second.path())).unwrap());
    handfast_bpf::probe().unwrap();
    let (first, more) = (once - begin, read() - once);
    let types = types.len();
    assert!(
        first >= types,
        "{first} bytes read: the loader reads them no more at all"
    );
    assert!(more < types / 10, "{more} bytes read, they are {types}");
}
