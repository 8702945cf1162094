//! Workloads of the node itself: whose socket may use a host endpoint's address, toward whom, and what it receives. The
//! sockets are those of this process, which goes from one control group to another.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use handfast_bpf::*;
use support::{packets::*, run::*};

/// A process is in one group: one test at a time.
static PROCESS: Mutex<()> = Mutex::new(());

/// From a peer's tunnel, as from-tunnel leaves it.
const DECIDED_THERE: Came = Came {
    mark: DECIDED << 2,
    by: 3,
};
/// By the loopback interface, with a mark that its sender has forged.
const LOOPED: Came = Came {
    mark: DECIDED << 2,
    by: 1,
};

/// Control groups of a test; it ends where it began.
struct Groups {
    root: PathBuf,
    folder: PathBuf,
    before: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Groups {
    /// Nothing, and a word why, where this process may not go from group to group.
    fn new(name: &str) -> Option<Self> {
        let turn = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut mounts = mounts.lines().filter(|line| line.contains(" cgroup2 "));
        let root = PathBuf::from(mounts.next()?.split(' ').nth(1)?);
        if let Err(error) = find_cgroup(&root) {
            eprintln!("skipped: {error}");
            return None;
        }
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let folder = root.join(format!("hf-test-{name}-{}", std::process::id()));
        let groups = Self {
            before: root.join(own),
            root,
            folder,
            _turn: turn,
        };
        for group in [&groups.own(), &groups.below(), &groups.other()] {
            if let Err(error) = fs::create_dir_all(group) {
                eprintln!("skipped: control groups cannot be made: {error}");
                return None;
            }
        }
        Some(groups)
    }

    fn own(&self) -> PathBuf {
        self.folder.join("own")
    }

    fn below(&self) -> PathBuf {
        self.folder.join("own/below")
    }

    fn other(&self) -> PathBuf {
        self.folder.join("other")
    }

    fn enter(&self, group: &Path) {
        fs::write(group.join("cgroup.procs"), "0").unwrap();
    }

    /// The host endpoint's group.
    fn id(&self) -> CgroupId {
        find_cgroup(&self.own()).unwrap()
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let _ = fs::write(self.before.join("cgroup.procs"), "0");
        for group in [self.below(), self.own(), self.other(), self.folder.clone()] {
            let _ = fs::remove_dir(group);
        }
    }
}

/// A node whose endpoint 7 (`me`) is a workload of the node itself.
fn node(name: &str, groups: &Groups) -> Option<Node> {
    let node = Node::new(name)?;
    for family in families() {
        let host = Host {
            cgroup: groups.id(),
            endpoint: ENDPOINT,
        };
        node.tables().set_host(family.me, host).unwrap();
    }
    Some(node)
}

fn syn(from: IpAddr, to: IpAddr) -> Vec<u8> {
    frame(&ip(from, to, TCP, &tcp(4000, 80, SYN)))
}

#[test]
fn only_sockets_of_its_group_use_a_host_endpoints_address_toward_a_peer() {
    let Some(groups) = Groups::new("source") else {
        return;
    };
    let Some(mut node) = node("host-source", &groups) else {
        return;
    };
    for family in families() {
        let packet = syn(family.me, family.them);
        for group in [groups.own(), groups.below()] {
            groups.enter(&group);
            assert_eq!(node.run("to_tunnel", HOST, &packet), Outcome::Pass(0));
            assert_eq!(
                node.run_socket("from_host", HOST, &packet),
                Outcome::Pass(0)
            );
        }
        groups.enter(&groups.other());
        let stranger = Outcome::Drop(Reason::OtherWorkload);
        assert_eq!(node.run("to_tunnel", HOST, &packet), stranger);
        assert_eq!(node.run_socket("from_host", HOST, &packet), stranger);
        // A forged mark does not help.
        let forged = Came {
            mark: SOURCE << 2,
            by: 0,
        };
        assert_eq!(node.run("to_tunnel", forged, &packet), stranger);
        // Nor does an address that no host endpoint has.
        let neighbours = syn(family.neighbour, family.them);
        let dropped = Outcome::Drop(Reason::HostMade);
        assert_eq!(node.run("to_tunnel", HOST, &neighbours), dropped);
        // What the rest of the machine sends with its own addresses is none of ours.
        let others = syn(family.world, family.stranger);
        assert_eq!(
            node.run_socket("from_host", HOST, &others),
            Outcome::Pass(0)
        );
    }
}

#[test]
fn a_host_endpoint_is_judged_and_held_as_any_other() {
    let Some(groups) = Groups::new("judged") else {
        return;
    };
    let Some(mut node) = node("host-judged", &groups) else {
        return;
    };
    groups.enter(&groups.own());
    let [family, _] = families();
    let packet = syn(family.me, family.them);
    node.tables().remove_pair(pair()).unwrap();
    assert_eq!(node.run("to_tunnel", HOST, &packet), Outcome::Hold);
    // As it is given back: the hold device restores what the gate has written.
    let returned = Came {
        mark: (SOURCE | RETURNED) << 2,
        by: 3,
    };
    let value = Pair {
        expires: far(),
        epoch: EPOCH,
    };
    node.tables().set_pair(pair(), value).unwrap();
    assert_eq!(node.run("to_tunnel", returned, &packet), Outcome::Pass(0));
    let entries: Vec<_> = [Direction::Ingress, Direction::Egress]
        .map(|direction| rule(direction, THEM, Ports::Any, deny()))
        .into();
    node.tables().replace_policy(ENDPOINT, &entries).unwrap();
    node.tables().policy_changed().unwrap();
    let denied = Outcome::Drop(Reason::Denied);
    assert_eq!(node.run("to_tunnel", HOST, &packet), denied);
}

#[test]
fn its_address_is_for_the_mesh_only() {
    let Some(groups) = Groups::new("mesh") else {
        return;
    };
    let Some(mut node) = node("host-mesh", &groups) else {
        return;
    };
    groups.enter(&groups.own());
    for family in families() {
        let out = syn(family.me, family.world);
        let refused = Outcome::Drop(Reason::NotManaged);
        assert_eq!(node.run_socket("from_host", HOST, &out), refused);
    }
}

#[test]
fn the_kernel_itself_answers_for_it_in_known_flows_only() {
    let Some(groups) = Groups::new("kernel") else {
        return;
    };
    let Some(mut node) = node("host-kernel", &groups) else {
        return;
    };
    for family in families() {
        groups.enter(&groups.root);
        let refused = Outcome::Drop(Reason::OtherWorkload);
        let reset = frame(&ip(family.me, family.them, TCP, &tcp(80, 4000, RST | ACK)));
        let begun = frame(&ip(family.me, family.them, TCP, &tcp(80, 4000, SYN)));
        let datagram = frame(&ip(family.me, family.them, UDP, &udp(53, 4000)));
        for packet in [&reset, &begun, &datagram] {
            assert_eq!(node.run("to_tunnel", HOST, packet), refused);
        }
        let asked = frame(&ip(family.them, family.me, TCP, &tcp(4000, 80, SYN)));
        let asked_too = frame(&ip(family.them, family.me, UDP, &udp(4000, 53)));
        for packet in [&asked, &asked_too] {
            let passed = node.run("from_tunnel", FORWARDED, packet);
            assert_eq!(passed, Outcome::Pass(DECIDED));
        }
        assert_eq!(node.run("to_tunnel", HOST, &reset), Outcome::Pass(0));
        // What a socket that took the port over could begin.
        for packet in [&begun, &datagram] {
            assert_eq!(node.run("to_tunnel", HOST, packet), refused);
        }
    }
}

#[test]
fn it_receives_what_a_gate_has_decided_and_nobody_else_receives_it() {
    let Some(groups) = Groups::new("receives") else {
        return;
    };
    let Some(mut node) = node("host-receives", &groups) else {
        return;
    };
    for family in families() {
        let packet = syn(family.them, family.me);
        groups.enter(&groups.own());
        let passed = node.run_socket("to_host", DECIDED_THERE, &packet);
        assert!(matches!(passed, Outcome::Pass(_)), "{passed:?}");
        let clear = Outcome::Drop(Reason::Cleartext);
        for mark in [0, OUTSIDE, UNDECIDED] {
            let came = Came {
                mark: mark << 2,
                by: 3,
            };
            assert_eq!(node.run_socket("to_host", came, &packet), clear, "{mark}");
        }
        // Whatever mark it has chosen: a process of this node is no gate.
        let looped = Outcome::Drop(Reason::HostMade);
        assert_eq!(node.run_socket("to_host", LOOPED, &packet), looped);
        // A workload talks to itself.
        let own = syn(family.me, family.me);
        let passed = node.run_socket("to_host", LOOPED, &own);
        assert!(matches!(passed, Outcome::Pass(_)), "{passed:?}");
        // Sockets get whole headers from the kernel; what has none is nobody's.
        let cut = frame(&ip(family.them, family.me, TCP, &[0, 1, 2]));
        let malformed = Outcome::Drop(Reason::Malformed);
        let mut undecided = LOOPED;
        undecided.by = 3;
        assert_eq!(node.run_socket("to_host", undecided, &cut), malformed);
        for group in [groups.other(), groups.root.clone()] {
            groups.enter(&group);
            let refused = Outcome::Drop(Reason::OtherWorkload);
            assert_eq!(node.run_socket("to_host", DECIDED_THERE, &packet), refused);
            assert_eq!(node.run_socket("to_host", LOOPED, &own), refused);
        }
        // What is not for it is none of ours.
        let others = syn(family.them, family.world);
        let passed = node.run_socket("to_host", FORWARDED, &others);
        assert_eq!(passed, Outcome::Pass(0));
    }
}

#[test]
fn a_workload_beside_it_needs_a_pair_both_ways() {
    let Some(groups) = Groups::new("beside") else {
        return;
    };
    let Some(mut node) = node("host-beside", &groups) else {
        return;
    };
    groups.enter(&groups.own());
    for family in families() {
        let packet = syn(family.neighbour, family.me);
        node.tables().remove_pair(local_pair()).unwrap();
        let unproven = Outcome::Drop(Reason::NoPair);
        assert_eq!(node.run_socket("to_host", GATED, &packet), unproven);
        let value = Pair {
            expires: far(),
            epoch: Epoch(0),
        };
        node.tables().set_pair(local_pair(), value).unwrap();
        let passed = node.run_socket("to_host", GATED, &packet);
        assert!(matches!(passed, Outcome::Pass(_)), "{passed:?}");
        // Its address alone proves nothing: no gate has seen whence it comes.
        let clear = Outcome::Drop(Reason::Cleartext);
        assert_eq!(node.run_socket("to_host", FORWARDED, &packet), clear);
        let looped = Outcome::Drop(Reason::HostMade);
        assert_eq!(node.run_socket("to_host", LOOPED, &packet), looped);
    }
}

#[test]
fn what_it_sends_to_a_workload_beside_it_is_judged_there() {
    let Some(groups) = Groups::new("sends") else {
        return;
    };
    let Some(mut node) = Node::new("host-sends") else {
        return;
    };
    // Now endpoint 7, whose gate is asked, is the workload beside it.
    for family in families() {
        let host = Host {
            cgroup: groups.id(),
            endpoint: OTHER,
        };
        node.tables().set_host(family.neighbour, host).unwrap();
        let packet = syn(family.neighbour, family.me);
        groups.enter(&groups.own());
        assert_eq!(
            node.run("to_endpoint", HOST, &packet),
            Outcome::Pass(SOURCE)
        );
        node.tables().remove_pair(local_pair()).unwrap();
        assert_eq!(node.run("to_endpoint", HOST, &packet), Outcome::Hold);
        let value = Pair {
            expires: far(),
            epoch: Epoch(0),
        };
        node.tables().set_pair(local_pair(), value).unwrap();
        // It answers what the workload has asked of it.
        let asked = frame(&ip(family.me, family.neighbour, TCP, &tcp(5000, 443, SYN)));
        let answer = frame(&ip(
            family.neighbour,
            family.me,
            TCP,
            &tcp(443, 5000, SYN | ACK),
        ));
        let passed = node.run_socket("to_host", GATED, &asked);
        assert!(matches!(passed, Outcome::Pass(_)), "{passed:?}");
        assert_eq!(
            node.run("to_endpoint", HOST, &answer),
            Outcome::Pass(SOURCE)
        );
        groups.enter(&groups.other());
        let refused = Outcome::Drop(Reason::OtherWorkload);
        assert_eq!(node.run("to_endpoint", HOST, &packet), refused);
        // The node's own probes go on.
        let probe = syn(family.world, family.me);
        assert_eq!(node.run("to_endpoint", HOST, &probe), Outcome::Pass(0));
    }
}

#[test]
fn links_that_are_pinned_go_with_the_last_host_endpoint_and_with_everything() {
    let Some(groups) = Groups::new("pinned") else {
        return;
    };
    let Some(node) = Node::new("host-pinned") else {
        return;
    };
    let pinned = || {
        let mut found: Vec<String> = fs::read_dir(node.pins())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains('-'))
            .collect();
        found.sort();
        found
    };
    let [family, _] = families();
    let addresses = [family.me];
    for id in [ENDPOINT, OTHER] {
        let host = Host {
            cgroup: groups.id(),
            endpoint: id,
        };
        let address = if id == ENDPOINT {
            family.me
        } else {
            family.neighbour
        };
        node.tables().set_host(address, host).unwrap();
        // Twice: an agent that comes back attaches anew.
        for _ in 0..2 {
            let attached = node
                .kernel
                .attach_host(id, &groups.root, &groups.own(), &addresses);
            attached.unwrap();
        }
    }
    assert_eq!(pinned().len(), 2 + 2 * 4, "{:?}", pinned());
    node.kernel.detach_host(ENDPOINT).unwrap();
    assert_eq!(pinned().len(), 2 + 4, "{:?}", pinned());
    node.kernel.detach_host(OTHER).unwrap();
    assert_eq!(pinned(), Vec::<String>::new());
    let host = Host {
        cgroup: groups.id(),
        endpoint: ENDPOINT,
    };
    node.tables().set_host(family.me, host).unwrap();
    let again = node
        .kernel
        .attach_host(ENDPOINT, &groups.root, &groups.own(), &addresses);
    again.unwrap();
    let gone = Kernel::detach_dir(node.pins()).unwrap().join("\n");
    assert!(gone.contains("program to_host"), "{gone}");
    assert!(!node.pins().exists());
}
