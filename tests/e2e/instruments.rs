//! The instruments themselves: a test that measures with a blind instrument proves nothing.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use crate::harness::capture::{Capture, FlowWatch, WireWatch, inject};
use crate::harness::counters::{Arrivals, Retransmissions};
use crate::harness::lab::{Lab, underlay};
use crate::harness::process::command;
use crate::harness::scan::canary;
use crate::harness::{namespace, wait};
use crate::support::{self, SOON};

#[test]
fn the_capture_sees_planted_frames_in_every_wrapping_and_the_secret() {
    let Some(_turn) = support::turn("instruments: capture") else {
        return;
    };
    let lab = Lab::create("hfi").unwrap();
    let watch = WireWatch::new(
        vec![
            "10.77.0.0/16".parse().unwrap(),
            "fd77::/48".parse().unwrap(),
        ],
        b"the-canary",
        b"the-secret",
        &[51872],
    );
    let wire = Capture::start(lab.switch(), watch).unwrap();
    let host = lab.host("n1", 1).unwrap();
    for payload in [b"the-canary".as_slice(), b"the-secret", b"neither"] {
        let frames = canary::frames(
            (Ipv4Addr::new(10, 77, 1, 9), Ipv4Addr::new(10, 77, 2, 9)),
            (
                "fd77::1".parse::<Ipv6Addr>().unwrap(),
                "fd77::2".parse().unwrap(),
            ),
            (
                Ipv4Addr::new(172, 31, 250, 250),
                Ipv4Addr::new(172, 31, 250, 251),
            ),
            payload,
        );
        for (_, frame) in frames {
            inject(&host.ns, "eth0", &frame).unwrap();
        }
    }
    // A broadcast is seen at the port and at the bridge itself.
    let all = wait::until("the planted frames", SOON, || {
        let seen = wire.with(|wire| (wire.canaries.len(), wire.clear, wire.secrets));
        Ok((seen.0 >= 10 && seen.1 >= 20 && seen.2 >= 10).then_some(()))
    });
    all.unwrap_or_else(|error| panic!("{error:#}: {}", wire.with(|wire| wire.describe_findings())));
    assert_eq!(wire.lost().unwrap(), 0);
}

#[test]
fn arrivals_flows_and_retransmissions_are_counted() {
    let Some(_turn) = support::turn("instruments: counters") else {
        return;
    };
    let lab = Lab::create("hfi").unwrap();
    let one = lab.host("n1", 1).unwrap();
    let two = lab.host("n2", 2).unwrap();
    let arrivals = Arrivals::watch(
        &two.place,
        &[("one", &underlay(1)), ("three", &underlay(3))],
    )
    .unwrap();
    let flow = Capture::start(&two.ns, FlowWatch::new(&underlay(1))).unwrap();
    for address in underlay(2).map(|address| address.to_string()) {
        one.place
            .run(
                &mut command("ping", &["-c", "2", "-i", "0.1", "-W", "5", &address]),
                Duration::from_secs(5),
            )
            .unwrap()
            .success("ping")
            .unwrap();
    }
    assert!(arrivals.packets("one").unwrap() >= 4);
    assert_eq!(arrivals.packets("three").unwrap(), 0);
    wait::until("the flow's frames", SOON, || {
        Ok((flow.with(|flow| flow.frames) >= 4).then_some(()))
    })
    .unwrap();

    // Nobody answers for a black hole's address: the SYN is sent again after a second.
    let before = Retransmissions::read(&one.ns).unwrap();
    one.ns
        .ip("neigh add 172.31.250.99 lladdr 02:00:00:00:00:99 dev eth0")
        .unwrap();
    let said = one
        .place
        .run(
            &mut command(
                "curl",
                &["-sS", "--noproxy", "*", "-m", "2", "http://172.31.250.99/"],
            ),
            Duration::from_secs(5),
        )
        .unwrap();
    assert!(!said.status.success());
    assert!(Retransmissions::read(&one.ns).unwrap().since(before).syn >= 1);
}

#[test]
fn a_lab_leaves_nothing_behind_not_even_its_daemons() {
    let Some(_turn) = support::turn("instruments: lab") else {
        return;
    };
    let lab = Lab::create("hfi").unwrap();
    let name = lab.name().to_owned();
    let host = lab
        .host_with("n1", &underlay(1), &["/run/wireguard", "/sys/fs/bpf"])
        .unwrap();
    let mut daemon = host
        .place
        .spawn("daemon", &mut command("sleep", &["1000"]))
        .unwrap();
    daemon.detach();
    assert!(daemon.running());
    let (dir, bpf) = (lab.dir().to_owned(), lab.bpf().to_owned());
    assert!(bpf.join("n1").is_dir());
    drop(host);
    drop(lab);
    assert!(!daemon.running());
    assert!(namespace::with_prefix(&format!("{name}-")).is_empty());
    for gone in [dir, bpf] {
        assert!(!gone.exists(), "{}", gone.display());
    }
}

#[test]
fn hosts_do_not_share_the_paths_that_are_their_own() {
    let Some(_turn) = support::turn("instruments: hosts") else {
        return;
    };
    let lab = Lab::create("hfi").unwrap();
    let own = "/run/wireguard";
    let one = lab.host_with("n1", &underlay(1), &[own]).unwrap();
    let two = lab.host_with("n2", &underlay(2), &[own]).unwrap();
    let file = format!("{own}/hf-e2e-probe");
    let soon = Duration::from_secs(5);
    one.place
        .run(&mut command("touch", &[&file]), soon)
        .unwrap()
        .success("touch")
        .unwrap();
    let seen = |host: &crate::harness::lab::Host| {
        host.place
            .run(&mut command("test", &["-e", &file]), soon)
            .unwrap()
            .status
            .success()
    };
    assert!(seen(&one) && !seen(&two));
    assert!(!Path::new(&file).exists());
}
