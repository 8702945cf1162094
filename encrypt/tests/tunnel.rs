//! Two nodes, two devices of one name on one machine, real packets.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Agent, Node, Pair, connect, connect_by_daemons, install, skipped};

#[test]
#[ignore = "the agent process of the other tests"]
fn agent_process() {
    common::agent::run();
}

#[test]
fn two_nodes_reach_each_others_workloads_over_both_families() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let (mut a, mut b) = connect(&pair, "same", "same");
    assert!(pair.a.reaches(&pair.b));
    assert!(pair.b.reaches(&pair.a));
    let device = a.tell("device");
    assert!(device.contains("mtu=1420 adopted=false"), "{device}");
    assert_eq!(
        b.tell("status"),
        format!(
            "port=51872 mark=0x72500000 peer preshared=true shaken=true {}",
            pair.a.prefixes
        )
    );
    assert!(
        pair.a.run("ip -6 addr show dev hf-wg0").is_empty(),
        "the device has no address of its own"
    );
}

#[test]
fn a_preshared_key_changed_in_place_under_traffic_loses_nothing() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let (mut a, mut b) = connect(&pair, "first", "first");
    let public_a = a.tell("key");
    let public_b = b.tell("key");
    assert!(pair.a.reaches(&pair.b));
    let line = format!(
        "ping -q -i 0.01 -c 300 -W 2 -I {} {}",
        pair.a.inside[0], pair.b.inside[0]
    );
    let ping = pair
        .a
        .command(&line)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for round in 0..10 {
        std::thread::sleep(Duration::from_millis(150));
        // The renewed session's peer, installed again, is the same peer.
        a.tell(&install(&public_b, &format!("round{round}"), &pair.b));
        std::thread::sleep(Duration::from_millis(50));
        b.tell(&install(&public_a, &format!("round{round}"), &pair.a));
    }
    let output = String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap();
    assert!(output.contains("300 received, 0% packet loss"), "{output}");
}

#[test]
fn static_keys_change_by_a_second_device_and_nothing_is_lost() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    // As strict as it gets: what comes in by one device and leaves by another.
    for node in [&pair.a, &pair.b] {
        node.run("sysctl -q -w net.ipv4.conf.all.rp_filter=1");
    }
    let (mut a, mut b) = connect(&pair, "first", "first");
    assert!(pair.a.reaches(&pair.b));
    let ping = |family: usize| {
        let (from, to) = (pair.a.inside[family], pair.b.inside[family]);
        let line = format!("ping -q -i 0.01 -c 600 -W 2 -I {from} {to}");
        let mut command = pair.a.command(&line);
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let pings = [ping(0), ping(1)];
    let first = a.tell("key");
    for round in 0..2 {
        let (public_a, public_b) = (a.tell("open-other"), b.tell("open-other"));
        assert_ne!(public_a, first, "a new device has a new key");
        let port = [51873, 51872][round];
        for (agent, other, key) in [(&mut a, &pair.b, &public_b), (&mut b, &pair.a, &public_a)] {
            agent.tell("up");
            let (underlay, prefixes) = (other.underlay, other.prefixes);
            agent.tell(&format!(
                "install {key} round{round} {underlay}:{port} {prefixes}"
            ));
        }
        // Not at once: for a while one sends by the new device and the other by the old.
        a.tell(&format!("routes {}", pair.b.prefixes));
        std::thread::sleep(Duration::from_millis(700));
        b.tell(&format!("routes {}", pair.a.prefixes));
        std::thread::sleep(Duration::from_millis(700));
        a.tell("detach-former");
        b.tell("detach-former");
    }
    for ping in pings {
        let output = String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap();
        assert!(output.contains("600 received, 0% packet loss"), "{output}");
    }
    assert!(!pair.a.try_run("ip link show dev hf-wg1").status.success());
    assert_eq!(
        pair.a.processes("wireguard-go").len(),
        pair.b.processes("wireguard-go").len()
    );
}

#[test]
fn one_nodes_static_key_changes_and_the_other_keeps_its_own_and_nothing_is_lost() {
    /// So long packets may be under way in a device that is about to go: in an emulator on a busy machine, that is.
    const UNDER_WAY: Duration = Duration::from_millis(900);
    if skipped() {
        return;
    }
    let pair = Pair::new();
    for node in [&pair.a, &pair.b] {
        node.run("sysctl -q -w net.ipv4.conf.all.rp_filter=1");
    }
    let (mut a, mut b) = connect(&pair, "first", "first");
    let key_of_b = b.tell("key");
    assert!(pair.a.reaches(&pair.b));
    let ping = |from: &Node, to: &Node| {
        let line = format!(
            "ping -q -i 0.005 -c 2400 -W 2 -I {} {}",
            from.inside[0], to.inside[0]
        );
        let mut command = from.command(&line);
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let pings = [ping(&pair.a, &pair.b), ping(&pair.b, &pair.a)];
    // Twice, so that it goes from the first device to the second and back.
    for (round, port) in [(0, 51873), (1, 51872)] {
        let key_of_a = a.tell("open-other");
        let hosting = b.tell(if round == 0 { "open-host" } else { "key" });
        assert_eq!(hosting, key_of_b, "its key is the same on both devices");
        a.tell("up");
        b.tell("up");
        // It cannot know yet where it is hosted, and need not.
        a.tell(&format!(
            "install {key_of_b} round{round} {}:51872 {}",
            pair.b.underlay, pair.b.prefixes
        ));
        b.tell(&format!(
            "install {key_of_a} round{round} {}:{port} {}",
            pair.a.underlay, pair.a.prefixes
        ));
        b.tell(&format!("rouse {key_of_a}"));
        for agent in [&mut a, &mut b] {
            wait(|| agent.tell("status").contains("shaken=true"));
        }
        a.tell(&format!("routes {}", pair.b.prefixes));
        std::thread::sleep(UNDER_WAY);
        b.tell(&format!("routes {}", pair.a.prefixes));
        std::thread::sleep(UNDER_WAY);
        a.tell("detach-former");
        if round == 0 {
            // The former peer goes, and the new one comes back to the first device.
            b.tell("forget-former");
            b.tell(&format!("back {key_of_a}"));
            b.tell(&format!("routes {}", pair.a.prefixes));
            std::thread::sleep(UNDER_WAY);
            b.tell("detach-former");
            b.tell("open-host");
        }
    }
    for ping in pings {
        let output = String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap();
        assert!(output.contains("2400 received, 0% packet loss"), "{output}");
    }
}

#[test]
fn keys_of_different_sessions_let_nothing_through_until_they_agree() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let (mut a, mut b) = connect(&pair, "one", "another");
    assert!(!pair.a.reaches(&pair.b));
    assert!(a.tell("status").contains("shaken=false"));
    let public_a = a.tell("key");
    b.tell(&install(&public_a, "one", &pair.a));
    // A handshake that failed silently is tried again after 5 s.
    let deadline = Instant::now() + Duration::from_secs(15);
    while !pair.a.reaches(&pair.b) {
        assert!(
            Instant::now() < deadline,
            "the keys agree, and nothing passes"
        );
    }
}

#[test]
fn a_removed_peer_is_cut_at_once() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let (mut a, mut b) = connect(&pair, "same", "same");
    assert!(pair.a.reaches(&pair.b));
    let (public_a, public_b) = (a.tell("key"), b.tell("key"));
    b.tell(&format!("remove {public_a}"));
    assert!(!pair.a.reaches(&pair.b));
    b.tell(&format!("remove {public_a}"));
    assert!(b.ask(&format!("rouse {public_a}")).contains("no peer"));
    // A prefix has one holder.
    let refused = a.ask(&install(&"11".repeat(32), "thief", &pair.b));
    assert!(refused.contains("belongs to peer"), "{refused}");
    a.tell(&format!("remove {public_b}"));
    a.tell(&install(&"11".repeat(32), "heir", &pair.b));
}

#[test]
fn a_killed_agent_leaves_the_tunnel_running_and_its_successor_adopts_it() {
    if skipped() {
        return;
    }
    for kind in [connect_as_found, connect_by_daemons] {
        let pair = Pair::new();
        let agents = kind(&pair);
        survives(&pair, agents);
    }
}

fn connect_as_found(pair: &Pair) -> (Agent, Agent) {
    connect(pair, "same", "same")
}

fn survives(pair: &Pair, (mut a, _b): (Agent, Agent)) {
    a.tell("nat");
    let (key, device, daemon) = (
        a.tell("key"),
        a.tell("device"),
        pair.a.processes("wireguard-go"),
    );
    let line = format!(
        "ping -q -i 0.01 -c 300 -W 2 -I {} {}",
        pair.a.inside[0], pair.b.inside[0]
    );
    let ping = pair
        .a
        .command(&line)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    a.kill();
    std::thread::sleep(Duration::from_millis(500));
    let mut a = Agent::start(&pair.a);
    assert_eq!(a.tell("open"), key);
    assert_eq!(
        a.tell("device"),
        device.replace("adopted=false", "adopted=true")
    );
    a.tell("up");
    a.tell(&format!("routes {}", pair.b.prefixes));
    a.tell("nat");
    assert!(
        a.tell("status")
            .contains(&format!("preshared=true shaken=true {}", pair.b.prefixes))
    );
    let output = String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap();
    assert!(output.contains("300 received, 0% packet loss"), "{output}");
    assert_eq!(pair.a.processes("wireguard-go"), daemon);
    assert!(pair.b.reaches(&pair.a));
}

#[test]
fn a_daemon_that_dies_is_noticed_and_replaced_and_meanwhile_nothing_leaks() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let (mut a, _b) = connect_by_daemons(&pair);
    assert!(pair.a.reaches(&pair.b));
    let (key, device) = (a.tell("key"), a.tell("device"));
    for pid in pair.a.processes("wireguard-go") {
        pair.a.run(&format!("kill -9 {pid}"));
    }
    let lost = a.event("lost");
    assert!(lost.contains("ended"), "{lost}");
    a.event("replaced");
    // New, and down until the gates are on it: the fallback routes answer.
    for address in pair.b.inside {
        let answer = pair.a.try_run(&format!("ip route get {address}"));
        assert!(
            !answer.status.success(),
            "{}",
            String::from_utf8_lossy(&answer.stdout)
        );
    }
    assert_ne!(a.tell("device"), device);
    a.tell("up");
    a.tell(&format!("routes {}", pair.b.prefixes));
    a.event("good");
    assert_eq!(a.tell("key"), key);
    assert!(pair.a.reaches(&pair.b), "same key, same peers");
    assert_eq!(pair.a.processes("wireguard-go").len(), 1);
}

#[test]
fn a_device_deleted_by_hand_comes_back() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let (mut a, _b) = connect(&pair, "same", "same");
    pair.a.run("ip link del hf-wg0");
    a.event("lost");
    a.event("replaced");
    a.tell("up");
    a.tell(&format!("routes {}", pair.b.prefixes));
    assert!(pair.a.reaches(&pair.b));
    assert!(pair.a.processes("wireguard-go").len() <= 1);
}

#[test]
fn a_device_set_down_by_hand_is_raised_again_and_meanwhile_nothing_leaks() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let (mut a, _b) = connect(&pair, "first", "first");
    assert!(pair.a.reaches(&pair.b));
    pair.a.run("ip link set hf-wg0 down");
    a.event("lost the device was set down");
    // The kernel has taken the routes away with it: the blackholes answer.
    assert!(!pair.a.reaches(&pair.b));
    a.event("replaced");
    a.tell("up");
    a.tell(&format!("routes {}", pair.b.prefixes));
    assert!(pair.a.reaches(&pair.b));
}

#[test]
fn what_somebody_changes_on_the_device_is_named_and_set_back() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let (mut a, _b) = connect_by_daemons(&pair);
    assert!(pair.a.reaches(&pair.b));
    a.tell("foreign-peer");
    let mended = a.event("mended");
    assert!(mended.contains("which no session of ours made"), "{mended}");
    assert!(!a.tell("status").contains("198.51.100.0/24"));
    pair.a.run("ip link set hf-wg0 mtu 1300");
    let mended = a.event("mended");
    assert!(mended.contains("MTU was 1300"), "{mended}");
    assert!(pair.a.reaches(&pair.b));
}

#[test]
fn detaching_leaves_nothing() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let before = (
        pair.a.run("ip rule"),
        pair.a.run("ip -6 rule"),
        pair.a.run("ip link"),
    );
    let (mut a, mut b) = connect(&pair, "same", "same");
    a.tell("nat");
    a.tell("detach");
    let after = (
        pair.a.run("ip rule"),
        pair.a.run("ip -6 rule"),
        pair.a.run("ip link"),
    );
    assert_eq!(before, after);
    assert!(pair.a.processes("wireguard-go").is_empty());
    assert!(!pair.a.run_dir().join("wireguard").exists());
    assert_eq!(pair.a.run("nft list ruleset"), "");
    for family in ["-4", "-6"] {
        let routes = pair
            .a
            .try_run(&format!("ip {family} route show table 7250"));
        assert!(routes.stdout.is_empty());
    }
    // Without a running agent too.
    b.tell("nat");
    b.kill();
    let mut b = Agent::start(&pair.b);
    assert_eq!(b.tell("detach"), "true");
    assert_eq!(b.tell("detach"), "false");
    assert!(!pair.b.try_run("ip link show dev hf-wg0").status.success());
    assert!(pair.b.processes("wireguard-go").is_empty());
}

fn wait(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}
