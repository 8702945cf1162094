//! Workloads of two nodes that speak to each other in the same moment, when nothing stands between the nodes yet.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::harness::capture::{Capture, Handler};
use crate::harness::mesh::workload_addresses;
use crate::harness::process::command;
use crate::support::{self, Mesh, SOON};

/// Who began a WireGuard handshake: the link layer's source addresses.
#[derive(Default)]
struct Initiators(BTreeSet<[u8; 6]>);

impl Handler for Initiators {
    fn frame(&mut self, _: Instant, frame: &[u8]) {
        if let Some(source) = initiation(frame) {
            self.0.insert(source);
        }
    }
}

/// Who sent it, if a frame is a handshake's first message: type 1, 148 bytes (WireGuard, 5.4.2) in UDP, whose header
/// has 8.
fn initiation(frame: &[u8]) -> Option<[u8; 6]> {
    const MESSAGE: usize = 148;
    let source = frame.get(6..12)?.try_into().ok()?;
    let at = frame.len().checked_sub(MESSAGE)?;
    let length = frame.get(at.checked_sub(4)?..at - 2)?;
    let begins = frame.get(at..)?.starts_with(&[1, 0, 0, 0]);
    (begins && *length == 156u16.to_be_bytes()).then_some(source)
}

/// Handshakes that cross undo each other, and are tried again only after five seconds.
#[test]
fn two_workloads_that_speak_to_each_other_at_once_are_both_answered_at_once() {
    let Some(_turn) = support::turn("both at once") else {
        return;
    };
    let mesh = Mesh::start();
    mesh.apply(&support::example_policy());
    let labels = ["run=nginx", "client=good"];
    let ends = [(&mesh.n1, "left"), (&mesh.n2, "right")]
        .map(|(node, name)| mesh.workload(node, name, &labels, 2));
    let _servers = [0, 1].map(|end| support::serve(&mesh.lab, &ends[end]));
    let initiators = Capture::start(mesh.lab.switch(), Initiators::default()).unwrap();
    let mut asking: Vec<_> = ends
        .iter()
        .zip([2, 1])
        .map(|(from, to)| {
            let [address, _] = workload_addresses(to, 2);
            let url = support::url(address);
            let words = ["-sS", "--noproxy", "*", "-m", "4", &url];
            from.place
                .spawn("curl", &mut command("curl", &words))
                .unwrap()
        })
        .collect();
    for curl in &mut asking {
        let ended = curl.wait(SOON).unwrap();
        assert!(ended.success(), "{}\n{}", curl.output(), mesh.evidence());
    }
    let began = initiators.with(|seen| seen.0.len());
    assert_eq!(
        began,
        1,
        "nodes that began a handshake\n{}",
        mesh.evidence()
    );
}
