//! IPsec between nodes: real associations of the kernel, real packets, and what is on the wire meanwhile.
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

use common::wire::{Sniffer, send_raw};
use common::{Agent, Node, Pair, Three, connect_by_ipsec, install, skipped_without_ipsec};

#[test]
#[ignore = "the agent process of the other tests"]
fn agent_process() {
    common::agent::run();
}

#[test]
fn two_nodes_reach_each_other_by_esp_and_by_nothing_else() {
    if skipped_without_ipsec() {
        return;
    }
    let pair = Pair::new();
    let sniffer = Sniffer::start(&pair.b, "up0");
    let (mut a, _b) = connect_by_ipsec(&pair, "secret");
    assert!(pair.a.reaches(&pair.b));
    assert!(pair.b.reaches(&pair.a));
    let device = a.tell("device");
    assert!(device.contains("mtu=1420 adopted=false ipsec"), "{device}");
    assert!(a.tell("status").contains("preshared=true shaken=true"));
    let states = pair.a.run("ip -d xfrm state");
    for part in [
        "rfc4106(gcm(aes))",
        "mode tunnel",
        "flag af-unspec esn",
        "replay_window 4096",
        "reqid 2",
    ] {
        assert!(states.contains(part), "{part} in {states}");
    }
    // Of each key the name, key and salt together, and the length of the check value.
    let keys: Vec<&str> = states
        .lines()
        .filter(|line| line.contains("aead"))
        .collect();
    assert_eq!(keys.len(), 3, "two to receive with, one to send with");
    for key in keys {
        let words: Vec<&str> = key.split_whitespace().collect();
        assert_eq!((words[2].len(), words[3]), (2 + 2 * 36, "128"));
    }
    // What the gates gave back from hold is known by its mark; both families, delivered here or forwarded.
    let policies = pair.a.run("ip xfrm policy");
    assert_eq!(policies.matches("mark 0x14/0x3c").count(), 4, "{policies}");
    assert_eq!(policies.matches("tmpl").count(), 6, "{policies}");
    assert!(!policies.contains("level use"), "none optional: {policies}");
    let seen = sniffer.stop();
    assert!(seen.esp > 20, "{seen:?}");
    assert_eq!(seen.clear, 0, "{seen:?}");
}

#[test]
fn keys_of_another_session_let_nothing_through() {
    if skipped_without_ipsec() {
        return;
    }
    let pair = Pair::new();
    let (mut a, mut b) = connect_by_ipsec(&pair, "one");
    let (name_a, name_b) = (a.tell("key"), b.tell("key"));
    assert!(pair.a.reaches(&pair.b));
    a.tell(&format!("remove {name_b}"));
    assert!(!pair.a.reaches(&pair.b));
    assert_eq!(pair.a.run("ip xfrm state"), "");
    assert_eq!(pair.a.run("ip xfrm policy"), "");
    a.tell(&install(&name_b, "another", &pair.b));
    assert!(!pair.a.reaches(&pair.b));
    b.tell(&format!("remove {name_a}"));
    b.tell(&install(&name_a, "another", &pair.a));
    assert!(pair.a.reaches(&pair.b));
    // The keys of a session are not to be had a second time, not even for a peer that was removed meanwhile.
    a.tell(&format!("remove {name_b}"));
    let error = a.ask(&install(&name_b, "another", &pair.b));
    assert!(error.contains("were installed before"), "{error}");
}

#[test]
fn a_session_that_succeeds_another_loses_nothing_and_its_keys_are_new() {
    if skipped_without_ipsec() {
        return;
    }
    let pair = Pair::new();
    let sniffer = Sniffer::start(&pair.b, "up0");
    let (mut a, mut b) = connect_by_ipsec(&pair, "session0");
    let (name_a, name_b) = (a.tell("key"), b.tell("key"));
    let traffic = Traffic::start(&pair);
    for round in 1..6 {
        let before = sent_with(&pair.a);
        a.tell(&install(&name_b, &format!("session{round}"), &pair.b));
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(sent_with(&pair.a), before, "not before both are ready");
        b.tell(&install(&name_a, &format!("session{round}"), &pair.a));
        std::thread::sleep(Duration::from_millis(100));
        b.tell(&format!("activate {name_a}"));
        std::thread::sleep(Duration::from_millis(300));
        a.tell(&format!("activate {name_b}"));
        assert_ne!(sent_with(&pair.a), before);
    }
    // The same session again is the same keys, and those are in place: nothing changes.
    let before = spis(&pair.a.run("ip xfrm state"));
    a.tell(&install(&name_b, "session5", &pair.b));
    let after = spis(&pair.a.run("ip xfrm state"));
    assert!(
        after.iter().all(|spi| before.contains(spi)),
        "{before:?} {after:?}"
    );
    // A session of the past would give its keys a second start.
    let error = a.ask(&install(&name_b, "session3", &pair.b));
    assert!(error.contains("were installed before"), "{error}");
    traffic.nothing_was_lost();
    let seen = sniffer.stop();
    assert_eq!(seen.clear, 0, "{seen:?}");
}

#[test]
fn sessions_that_never_take_over_do_not_pile_up_in_the_kernel() {
    if skipped_without_ipsec() {
        return;
    }
    let pair = Pair::new();
    let (mut a, mut b) = connect_by_ipsec(&pair, "first");
    let (name_a, name_b) = (a.tell("key"), b.tell("key"));
    for round in 0..40 {
        a.tell(&install(&name_b, &format!("session{round}"), &pair.b));
    }
    let there = spis(&pair.a.run("ip xfrm state")).len();
    assert!(there <= 36, "{there} associations");
    // Neither the session in use nor the last one has suffered.
    assert!(pair.a.reaches(&pair.b) && pair.b.reaches(&pair.a));
    b.tell(&install(&name_a, "session39", &pair.a));
    b.tell(&format!("activate {name_a}"));
    assert!(pair.b.reaches(&pair.a));
    a.tell(&format!("activate {name_b}"));
    assert!(pair.a.reaches(&pair.b));
}

#[test]
fn keys_change_under_traffic_without_loss_and_old_ones_leave() {
    if skipped_without_ipsec() {
        return;
    }
    let pair = Pair::new();
    let sniffer = Sniffer::start(&pair.b, "up0");
    let (mut a, mut b) = connect_by_ipsec(&pair, "secret");
    let traffic = Traffic::start(&pair);
    let mut seen = spis(&pair.a.run("ip xfrm state"));
    for round in 0..6 {
        std::thread::sleep(Duration::from_millis(400));
        let agent = if round % 2 == 0 { &mut a } else { &mut b };
        wait(|| agent.tell("rotate") == "0");
    }
    std::thread::sleep(Duration::from_millis(500));
    let now = spis(&pair.a.run("ip xfrm state"));
    seen.extend(now.iter().cloned());
    seen.sort();
    seen.dedup();
    // Two directions with six changes each; some have left already.
    assert!(seen.len() >= 8, "{seen:?}");
    assert_eq!(a.tell("stuck"), "0");
    traffic.nothing_was_lost();
    assert_eq!(
        a.tell("refused"),
        "0",
        "nothing came that looked replayed or forged"
    );
    let on_wire = sniffer.stop();
    assert_eq!(on_wire.clear, 0, "{on_wire:?}");
    assert!(on_wire.spis > 8, "{on_wire:?}");
    // What is sent with no more goes after two seconds.
    std::thread::sleep(Duration::from_millis(2500));
    let sending = pair.a.run("ip xfrm state list src 192.0.2.1");
    assert_eq!(spis(&sending).len(), 1, "{sending}");
}

#[test]
fn keys_change_by_themselves_before_their_limit_and_a_silent_peer_is_told_of() {
    if skipped_without_ipsec() {
        return;
    }
    let pair = Pair::new();
    let (mut a, mut b) = (Agent::start(&pair.a), Agent::start(&pair.b));
    for agent in [&mut a, &mut b] {
        agent.tell("limit 600");
    }
    let (name_a, name_b) = (a.tell("open-ipsec"), b.tell("open-ipsec"));
    for (agent, other) in [(&mut a, &pair.b), (&mut b, &pair.a)] {
        agent.tell("up");
        agent.tell(&format!("routes {}", other.prefixes));
    }
    a.tell(&install(&name_b, "secret", &pair.b));
    b.tell(&install(&name_a, "secret", &pair.a));
    // Over a thousand packets each way, by keys that end at 600.
    let line = format!(
        "ping -q -i 0.005 -c 1200 -W 2 -I {} {}",
        pair.a.inside[0], pair.b.inside[0]
    );
    let output = pair.a.run(&line);
    assert!(output.contains("1200 received, 0% packet loss"), "{output}");
    assert_eq!(a.tell("stuck"), "0");
    // Toward a peer that does not answer the same key serves until the kernel ends it, and no packet after.
    b.tell(&format!("remove {name_a}"));
    pair.a.try_run(&format!(
        "ping -q -i 0.002 -c 700 -W 1 -I {} {}",
        pair.a.inside[0], pair.b.inside[0]
    ));
    assert_eq!(a.tell("stuck"), "1");
    let sniffer = Sniffer::start(&pair.b, "up0");
    pair.a.try_run(&format!(
        "ping -q -i 0.1 -c 5 -W 1 -I {} {}",
        pair.a.inside[0], pair.b.inside[0]
    ));
    let seen = sniffer.stop();
    assert_eq!((seen.esp, seen.clear), (0, 0), "{seen:?}");
}

#[test]
fn a_replayed_packet_is_refused_and_counted() {
    if skipped_without_ipsec() {
        return;
    }
    let pair = Pair::new();
    let sniffer = Sniffer::start(&pair.b, "up0");
    let (_a, mut b) = connect_by_ipsec(&pair, "secret");
    assert!(pair.a.reaches(&pair.b));
    let captured = sniffer.stop().inward_esp;
    assert!(!captured.is_empty());
    let echoes = || counter(&pair.b, "snmp", "Icmp", "InEchos");
    let before = echoes();
    for packet in &captured {
        send_raw(&pair.a, pair.b.underlay, packet);
    }
    // One byte of it another: not what was sealed.
    let mut forged = captured[0].clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    // A sequence number that was not seen yet, so that it is the seal that is looked at.
    forged[26] ^= 0x10;
    send_raw(&pair.a, pair.b.underlay, &forged);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(echoes(), before, "none of them was delivered");
    let refused: usize = b.tell("refused").parse().unwrap();
    assert!(
        refused > captured.len(),
        "{refused} of {}",
        captured.len() + 1
    );
    assert!(pair.a.reaches(&pair.b));
}

#[test]
fn a_peer_that_uses_another_peers_prefix_is_dropped_by_the_kernel() {
    if skipped_without_ipsec() {
        return;
    }
    let three = Three::new();
    let mut agents: Vec<Agent> = [&three.a, &three.b, &three.c].map(Agent::start).into();
    let names: Vec<String> = agents
        .iter_mut()
        .map(|agent| agent.tell("open-ipsec"))
        .collect();
    let nodes = [&three.a, &three.b, &three.c];
    for (at, agent) in agents.iter_mut().enumerate() {
        agent.tell("up");
        let others: Vec<usize> = (0..3).filter(|other| *other != at).collect();
        let prefixes: Vec<&str> = others.iter().map(|other| nodes[*other].prefixes).collect();
        agent.tell(&format!("routes {}", prefixes.join(",")));
        for other in others {
            let secret = format!("secret{}", at + other);
            agent.tell(&install(&names[other], &secret, nodes[other]));
        }
    }
    assert!(three.a.reaches(&three.b) && three.a.reaches(&three.c) && three.c.reaches(&three.b));
    // B sends as C. Its own kernel would find no policy of C's way out, so it says that C's prefix is its own.
    let delivered = || counter(&three.a, "snmp", "Icmp", "InEchos");
    let mismatches = || xfrm_counter(&three.a, "XfrmInTmplMismatch");
    for address in three.c.inside {
        let bits = if address.contains(':') { 128 } else { 32 };
        three.b.run(&format!("ip addr add {address}/{bits} dev lo"));
    }
    let (before, refused) = (delivered(), mismatches());
    let line = format!(
        "ping -c 3 -i 0.2 -W 1 -I {} {}",
        three.c.inside[0], three.a.inside[0]
    );
    assert!(!three.b.try_run(&line).status.success());
    assert_eq!(delivered(), before, "none was delivered");
    assert_eq!(mismatches(), refused + 3, "and each was counted");
    let line = format!(
        "ping -c 3 -i 0.2 -W 1 -I {} {}",
        three.c.inside[1], three.a.inside[1]
    );
    assert!(!three.b.try_run(&line).status.success());
    assert_eq!(mismatches(), refused + 6);
}

#[test]
fn an_agents_death_changes_nothing_and_its_successor_takes_over() {
    if skipped_without_ipsec() {
        return;
    }
    let pair = Pair::new();
    let (mut a, mut b) = connect_by_ipsec(&pair, "first");
    let (name_a, name_b) = (a.tell("key"), b.tell("key"));
    let traffic = Traffic::start(&pair);
    a.kill();
    // What nobody's session made does not stay.
    pair.a
        .run("ip xfrm policy add src 203.0.113.0/24 dst 0.0.0.0/0 dir in if_id 7250");
    let mut a = Agent::start(&pair.a);
    assert_eq!(
        a.tell("open-ipsec"),
        name_a,
        "the name is the boot's, not the agent's"
    );
    assert!(!pair.a.run("ip xfrm policy").contains("203.0.113.0"));
    assert!(a.tell("device").contains("adopted=true"));
    a.tell("up");
    a.tell(&format!("routes {}", pair.b.prefixes));
    // The successor session, in the order that a peer makes hardest: it sends with the new keys first.
    a.tell(&install(&name_b, "second", &pair.b));
    b.tell(&install(&name_a, "second", &pair.a));
    b.tell(&format!("activate {name_a}"));
    std::thread::sleep(Duration::from_millis(500));
    a.tell(&format!("activate {name_b}"));
    std::thread::sleep(Duration::from_millis(3000));
    traffic.nothing_was_lost();
    let sending = pair.a.run("ip xfrm state list src 192.0.2.1");
    assert_eq!(spis(&sending).len(), 1, "{sending}");
}

#[test]
fn nothing_leaves_in_clear_whatever_is_taken_away() {
    if skipped_without_ipsec() {
        return;
    }
    let pair = Pair::new();
    let sniffer = Sniffer::start(&pair.b, "up0");
    let (mut a, mut b) = connect_by_ipsec(&pair, "secret");
    let (name_a, name_b) = (a.tell("key"), b.tell("key"));
    let mut traffic = Traffic::start(&pair);
    std::thread::sleep(Duration::from_millis(300));
    // Associations and policies flushed by hand, the device deleted and restored, the peer removed and back.
    pair.a.run("ip xfrm state flush");
    std::thread::sleep(Duration::from_millis(300));
    pair.a.run("ip xfrm policy flush");
    std::thread::sleep(Duration::from_millis(300));
    pair.a.run("ip link del hf-xfrm0");
    a.event("replaced");
    std::thread::sleep(Duration::from_millis(300));
    a.tell("up");
    a.tell(&format!("routes {}", pair.b.prefixes));
    std::thread::sleep(Duration::from_millis(300));
    a.tell(&format!("remove {name_b}"));
    std::thread::sleep(Duration::from_millis(300));
    b.tell(&format!("remove {name_a}"));
    a.tell(&install(&name_b, "again", &pair.b));
    b.tell(&install(&name_a, "again", &pair.a));
    assert!(pair.a.reaches(&pair.b));
    traffic.stop();
    let seen = sniffer.stop();
    assert_eq!(seen.clear, 0, "{seen:?}");
    assert!(seen.esp > 50, "{seen:?}");
    // Who detaches wants traffic to go on without us.
    a.tell("detach");
    assert_eq!(pair.a.run("ip xfrm state"), "");
    assert_eq!(pair.a.run("ip xfrm policy"), "");
    assert!(!pair.a.try_run("ip link show dev hf-xfrm0").status.success());
    assert!(!pair.a.run_dir().join("ipsec.json").exists());
}

#[test]
fn what_others_use_is_refused_by_name_and_left_alone() {
    if skipped_without_ipsec() {
        return;
    }
    let pair = Pair::new();
    let mut a = Agent::start(&pair.a);
    pair.a.run("ip link add hf-xfrm0 type dummy");
    let error = a.ask("open-ipsec");
    assert!(
        error.contains("hf-xfrm0 exists and is not handfast's"),
        "{error}"
    );
    pair.a.run("ip link del hf-xfrm0");
    pair.a.run("ip link add other type xfrm if_id 7250");
    let error = a.ask("open-ipsec");
    assert!(error.contains("interface id 7250 is in use"), "{error}");
    pair.a.run("ip link del other");
    pair.a.run("ip link set up0 mtu 1300");
    let error = a.ask("open-ipsec");
    assert!(error.contains("up0 has an MTU of 1300"), "{error}");
    assert!(!pair.a.try_run("ip link show dev hf-xfrm0").status.success());
    pair.a.run("ip link set up0 mtu 1500");
    // Somebody else's entries stay through our coming and going.
    pair.a
        .run("ip xfrm policy add src 203.0.113.0/24 dst 198.51.100.0/24 dir out action block");
    a.tell("open-ipsec");
    a.tell("detach");
    assert!(pair.a.run("ip xfrm policy").contains("203.0.113.0/24"));
}

/// A steady ping from A to B over both families.
struct Traffic(Vec<std::process::Child>);

impl Traffic {
    fn start(pair: &Pair) -> Self {
        let pings = (0..2).map(|family| {
            let line = format!(
                "ping -q -i 0.01 -W 2 -I {} {}",
                pair.a.inside[family], pair.b.inside[family]
            );
            let mut command = pair.a.command(&line);
            command.stdout(Stdio::piped()).spawn().unwrap()
        });
        let pings = pings.collect();
        std::thread::sleep(Duration::from_millis(300));
        Self(pings)
    }

    fn stop(&mut self) -> Vec<String> {
        let pings = std::mem::take(&mut self.0);
        // A last answer may be on its way when the interrupt comes: `ping` counts it as lost.
        let outputs = pings.into_iter().map(|ping| {
            let pid = nix::unistd::Pid::from_raw(ping.id() as i32);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
            String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap()
        });
        outputs.collect()
    }

    fn nothing_was_lost(mut self) {
        for output in self.stop() {
            let numbers: Vec<u64> = output
                .lines()
                .find(|line| line.contains("packets transmitted"))
                .unwrap()
                .split(|letter: char| !letter.is_ascii_digit())
                .filter_map(|number| number.parse().ok())
                .collect();
            assert!(numbers[0] > 50, "{output}");
            assert!(numbers[0] - numbers[1] <= 1, "{output}");
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        for ping in &mut self.0 {
            let _ = ping.kill();
            let _ = ping.wait();
        }
    }
}

fn wait(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "it did not come about");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn spis(states: &str) -> Vec<String> {
    let mut found: Vec<String> = states
        .split_whitespace()
        .zip(states.split_whitespace().skip(1))
        .filter(|(word, _)| *word == "spi")
        .map(|(_, spi)| spi.to_owned())
        .collect();
    found.sort();
    found
}

/// The associations that outward policies name.
fn sent_with(node: &Node) -> Vec<String> {
    spis(&node.run("ip xfrm policy list dir out"))
}

/// A counter of /proc/net/FILE, by its group and name.
fn counter(node: &Node, file: &str, group: &str, name: &str) -> u64 {
    let text = node.run(&format!("cat /proc/net/{file}"));
    let mut lines = text
        .lines()
        .filter(|line| line.starts_with(&format!("{group}:")));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|found| found == name).unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

fn xfrm_counter(node: &Node, name: &str) -> u64 {
    let text = node.run("cat /proc/net/xfrm_stat");
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
