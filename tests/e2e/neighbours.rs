//! Others on a node's hooks: a network that hands packets to workloads past every gate is named before an agent begins, and a program
//! that somebody puts ahead of a gate is named and comes behind it again.

use std::path::{Path, PathBuf};

use handfast_bpf::{Kernel, Options};

use crate::harness::lab::Lab;
use crate::harness::mesh::{Authority, Node};
use crate::harness::process::command;
use crate::harness::wait;
use crate::support::{self, Mesh, SOON, binary, fails};

/// Runs the rest of the line where Cilium has left a map of its own: on a bpffs that nobody else sees.
const BESIDE_CILIUM: &str = "mount -t bpf bpf /sys/fs/bpf && mkdir -p /sys/fs/bpf/tc/globals/cilium_calls_00001 && exec \"$@\"";

#[test]
fn a_network_that_hands_packets_past_the_gates_is_named_before_an_agent_begins() {
    let Some(_turn) = support::turn("host routing of others") else {
        return;
    };
    let lab = Lab::create("hft").unwrap();
    let authority = Authority::start(&lab, binary()).unwrap();
    let node = Node::create(&lab, binary(), 1).unwrap();
    node.join(&authority).unwrap();
    let beside = |words: &[&str]| {
        let mut beside = command("unshare", &["--mount", "sh", "-c", BESIDE_CILIUM, "sh"]);
        beside.arg(binary()).args(words);
        beside.arg("--data-dir").arg(node.data_dir());
        beside.arg("--run-dir").arg(node.run_dir());
        beside.args(["--bpf-dir", "/sys/fs/bpf/handfast"]);
        beside
    };
    let place = &node.host.place;
    let refused = place.run(&mut beside(&["agent", "run"]), SOON).unwrap();
    let words = [
        "Cilium",
        "bpf.hostLegacyRouting=true",
        "--accept-host-routing",
        "nothing was changed",
    ];
    fails(&refused, &words);
    let links = place.run(&mut command("ip", &["-o", "link"]), SOON);
    let links = links.unwrap().stdout;
    assert!(!links.contains("hf-"), "{links}");
    let checked = place.run(&mut beside(&["check"]), SOON).unwrap();
    for word in ["other network", "bpf.hostLegacyRouting=true"] {
        assert!(checked.stdout.contains(word), "{checked:?}");
    }

    // Who knows better, says so.
    let words = ["agent", "run", "--accept-host-routing"];
    let _agent = place.spawn("agent", &mut beside(&words)).unwrap();
    let answers = wait::until("the agent", SOON, || {
        Ok(node.cli(&["status"])?.status.success().then_some(()))
    });
    answers.unwrap();
}

#[test]
fn what_others_have_under_our_names_and_numbers_stops_an_agent_before_anything_is_made() {
    let Some(_turn) = support::turn("names of ours in others' use") else {
        return;
    };
    let lab = Lab::create("hft").unwrap();
    let authority = Authority::start(&lab, binary()).unwrap();
    let node = Node::create(&lab, binary(), 1).unwrap();
    node.join(&authority).unwrap();
    let (ns, place) = (&node.host.ns, &node.host.place);
    let run = || {
        let mut run = command(binary(), &["agent", "run", "--metrics", "off"]);
        run.arg("--data-dir").arg(node.data_dir());
        run.arg("--run-dir").arg(node.run_dir());
        run.arg("--bpf-dir").arg(node.bpf_dir());
        place.run(&mut run, SOON).unwrap()
    };
    let standing = || {
        let look = |program: &str, words: &[&str]| {
            let said = place.run(&mut command(program, words), SOON).unwrap();
            said.stdout
        };
        let links = look("ip", &["-br", "link"]);
        let links: Vec<String> = links
            .lines()
            .filter_map(|line| line.split([' ', '@']).next().map(str::to_owned))
            .collect();
        (
            links,
            look("ip", &["rule"]),
            // Not all of them: the kernel has routes of its own to come.
            look("ip", &["route", "show", "table", "7250"]),
            look("ip", &["-6", "route", "show", "table", "7250"]),
            look("nft", &["list", "tables"]),
            node.bpf_dir().exists(),
        )
    };
    for (theirs, away, words) in [
        (
            "link add hf-wg0 type veth peer name other",
            "link del hf-wg0",
            ["hf-wg0", "ip link del hf-wg0"],
        ),
        (
            "link add hf-hold0 type veth peer name other",
            "link del hf-hold0",
            ["hf-hold0", "--hold-device"],
        ),
        (
            "route add 192.0.2.0/24 dev eth0 table 7250",
            "route del 192.0.2.0/24 dev eth0 table 7250",
            ["table 7250", "--routing-table"],
        ),
        (
            "rule add priority 725 from 192.0.2.1 lookup 99",
            "rule del priority 725",
            ["priority 725", "looks up table 99"],
        ),
        (
            "link set eth0 mtu 1300",
            "link set eth0 mtu 1500",
            ["1300", "1360"],
        ),
    ] {
        ns.ip(theirs).unwrap();
        let before = standing();
        fails(&run(), &words);
        assert_eq!(standing(), before, "{theirs}");
        ns.ip(away).unwrap();
    }
}

#[test]
fn a_program_that_is_put_ahead_of_a_gate_is_told_of_and_comes_behind_it_again() {
    let Some(_turn) = support::turn("programs ahead of gates") else {
        return;
    };
    if !has_tcx() {
        eprintln!(
            "skipped: programs ahead of gates: two of handfast's own share a place where there is no tcx"
        );
        return;
    }
    let mesh = Mesh::start();
    // A tripwire of a mesh that nobody is in: it lets everything pass, and has the same name.
    let pins = Pins(PathBuf::from(format!(
        "/sys/fs/bpf/hft-ahead-{}",
        std::process::id()
    )));
    let other = Kernel::open(Options::new(&pins.0)).unwrap();
    let attached = mesh.n1.host.ns.inside(|| {
        let underlay = nix::net::if_::if_nametoindex("eth0")?;
        Ok(other.attach_wire(underlay)?)
    });
    attached.unwrap();
    let told = wait::until("the alarm", 2 * SOON, || {
        let alarms = mesh.status(&mesh.n1).alarms.into_iter();
        Ok(alarms
            .map(|alarm| alarm.text)
            .find(|text| text.contains("ahead of our gate")))
    });
    let told = told.unwrap_or_else(|error| panic!("{error:#}\n{}", mesh.evidence()));
    for word in ["wire_", "eth0", "The gate comes first again"] {
        assert!(told.contains(word), "{told}");
    }
    let removed = mesh.n1.host.ns.inside(|| Ok(other.detach_all()?));
    removed.unwrap();
}

/// A folder of pins, taken away in any case.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether several programs stand on one hook by tcx (Linux 6.6).
fn has_tcx() -> bool {
    let release = std::fs::read_to_string(Path::new("/proc/sys/kernel/osrelease")).unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|n| n.parse::<u32>().ok());
    (next(), next()) >= (Some(6), Some(6))
}
