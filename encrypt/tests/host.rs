//! What the tunnel does to its host, and what a host can do to it: routes, nat, and everything that may be odd.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::io::{BufRead, BufReader};

use common::{Agent, Pair, connect, connect_by_daemons, skipped};

#[test]
#[ignore = "the agent process of the other tests"]
fn agent_process() {
    common::agent::run();
}

#[test]
fn routes_are_exactly_what_was_set_however_often_it_is() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let mut agent = Agent::start(&pair.a);
    agent.tell("open");
    agent.tell("up");
    let table = |family: &str| pair.a.run(&format!("ip {family} route show table 7250"));
    let mut seen = Vec::new();
    for _ in 0..2 {
        agent.tell("routes 10.71.2.0/24,10.71.3.9/24,fd71:2::/64");
        seen.push((
            table("-4"),
            table("-6"),
            pair.a.run("ip rule"),
            pair.a.run("ip -6 rule"),
        ));
    }
    let (v4, v6, rule, rule6) = seen.pop().unwrap();
    assert_eq!(
        seen.pop().unwrap(),
        (v4.clone(), v6.clone(), rule.clone(), rule6.clone())
    );
    for line in [
        "10.71.2.0/24 dev hf-wg0 proto 72 scope link metric 100",
        "blackhole 10.71.2.0/24 proto 72 metric 4294967295",
        "10.71.3.0/24 dev hf-wg0 proto 72 scope link metric 100",
    ] {
        assert!(v4.contains(line), "{v4}");
    }
    assert_eq!((v4.lines().count(), v6.lines().count()), (4, 2), "{v4}{v6}");
    assert!(
        v6.contains("fd71:2::/64 dev hf-wg0 proto 72 metric 100"),
        "{v6}"
    );
    for rules in [&rule, &rule6] {
        assert!(
            rules.contains("725:\tnot from all fwmark 0x72500000 lookup 7250 proto 72"),
            "{rules}"
        );
    }
    // A prefix that leaves the mesh takes both of its routes along.
    agent.tell("routes 10.71.2.0/24");
    assert_eq!((table("-4").lines().count(), table("-6").as_str()), (2, ""));
    // A successor finds its own and makes no second one.
    agent.kill();
    let mut agent = Agent::start(&pair.a);
    agent.tell("open");
    agent.tell("routes 10.71.2.0/24");
    assert_eq!(pair.a.run("ip rule"), rule);
    assert_eq!(table("-4").lines().count(), 2);
}

#[test]
fn the_tunnels_own_packets_never_enter_the_tunnel() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let mut agent = Agent::start(&pair.a);
    agent.tell("open");
    agent.tell("up");
    agent.tell(&format!("routes {}", pair.b.prefixes));
    for address in pair.b.inside {
        let plain = pair.a.run(&format!("ip route get {address}"));
        assert!(plain.contains("dev hf-wg0"), "{plain}");
        let marked = pair
            .a
            .try_run(&format!("ip route get {address} mark 0x72500000"));
        assert!(!String::from_utf8(marked.stdout).unwrap().contains("hf-wg0"));
    }
    // With a deleted device there is nothing to fall through to, for anybody else.
    pair.a.run("ip link del hf-wg0");
    assert!(
        !pair
            .a
            .try_run(&format!("ip route get {}", pair.b.inside[0]))
            .status
            .success()
    );
}

#[test]
fn a_masquerade_of_the_cni_does_not_change_sources_toward_the_tunnel() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let (mut a, _b) = connect(&pair, "same", "same");
    // To the node's address, spelled out: our device has none that a masquerade would find.
    pair.a.nft(
        "table inet cni { chain postrouting { type nat hook postrouting priority srcnat;\n\
         ip saddr 10.71.1.0/24 snat ip to 192.0.2.1\n\
         ip6 saddr fd71:1::/64 snat ip6 to 2001:db8::1\n}\n}\n",
    );
    assert!(
        !pair.a.reaches(&pair.b),
        "the masquerade is at work without our chain"
    );
    for _ in 0..2 {
        a.tell("nat");
    }
    let table = pair.a.run("nft list table inet handfast");
    assert_eq!(table.matches("snat").count(), 2, "{table}");
    assert!(table.contains("priority srcnat - 10"), "{table}");
    assert!(pair.a.reaches(&pair.b));
    a.tell("detach");
    assert!(!pair.a.run("nft list tables").contains("handfast"));
}

#[test]
fn what_policy_refused_does_not_reach_the_host_and_what_is_forwarded_has_a_mark() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let (host, other) = (&pair.a, &pair.b);
    // Stands in for the gates: marks by destination, and all discovery as refused.
    let mut marks = String::new();
    let addresses: Vec<(String, u32)> = (0..16)
        .flat_map(|bits| {
            [
                (format!("198.51.100.{}", bits + 1), bits),
                (format!("2001:db8::{:x}", bits + 1), bits),
            ]
        })
        .collect();
    for (address, bits) in &addresses {
        let (family, length) = match address.contains(':') {
            true => ("ip6", 128),
            false => ("ip", 32),
        };
        host.run(&format!("ip addr add {address}/{length} dev lo"));
        marks += &format!(
            "{family} daddr {address} meta mark set {:#x}\n",
            bits << 2 | 1
        );
    }
    host.nft(&format!(
        "table inet gates {{ chain prerouting {{ type filter hook prerouting priority 0;\n\
         icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} meta mark set 0x8 accept\n{marks}}}\n\
         chain postrouting {{ type filter hook postrouting priority 0;\n\
         oifname lo2 meta mark 0xc counter\noifname lo2 meta mark 0x24 counter\n}}\n}}\n"
    ));
    host.run("ip addr add 2001:db8:1::1/64 dev up0 nodad");
    other.run("ip addr add 2001:db8:1::2/64 dev up0 nodad");
    other.run("ip route replace default via 192.0.2.1");
    other.run("ip -6 route replace default via 2001:db8:1::1");
    let mut agent = Agent::start(host);
    agent.tell("nat");
    for (address, bits) in &addresses {
        let reply = other.try_run(&format!("ping -c 1 -W 1 {address}")).status;
        assert_eq!(reply.success(), bits & 3 != 2, "{address} {bits}");
    }
    let table = host.run("nft list chain inet handfast input");
    assert!(table.contains("counter packets 8 "), "{table}");

    // Forwarded: what has no bit of ours gets those for "from outside", the rest keeps its own.
    host.run("sysctl -q -w net.ipv4.ip_forward=1");
    host.run("ip link add lo2 type veth peer name lo3");
    host.run("ip link set lo3 up");
    host.run("ip link set lo2 up");
    host.run("ip route add 203.0.113.0/24 dev lo2");
    host.nft("insert rule inet gates prerouting ip daddr 203.0.113.2 meta mark set 0x24\n");
    for address in ["203.0.113.1", "203.0.113.2"] {
        other.run(&format!(
            "ip neigh replace {address} lladdr 02:00:00:00:00:01 dev up0"
        ));
        host.run(&format!(
            "ip neigh replace {address} lladdr 02:00:00:00:00:01 dev lo2"
        ));
        other.try_run(&format!("ping -c 1 -W 1 {address}"));
    }
    let seen = host.run("nft list chain inet gates postrouting");
    assert_eq!(seen.matches("counter packets 1 ").count(), 2, "{seen}");
}

#[test]
fn what_others_use_is_refused_by_name_and_left_alone() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let mut agent = Agent::start(&pair.a);
    pair.a.run("ip tuntap add hf-wg0 mode tun");
    let error = agent.ask("open");
    assert!(
        error.contains("hf-wg0 exists and is not handfast's"),
        "{error}"
    );
    pair.a.run("ip link del hf-wg0");
    agent.tell("open");
    pair.a
        .run("ip route add blackhole 198.51.100.0/24 table 7250");
    let error = agent.ask("routes 10.71.2.0/24");
    assert!(error.contains("routing table 7250 is in use"), "{error}");
    pair.a
        .run("ip route del blackhole 198.51.100.0/24 table 7250");
    pair.a
        .run("ip rule add priority 725 from 198.51.100.0/24 lookup main");
    let error = agent.ask("routes 10.71.2.0/24");
    assert!(error.contains("priority 725 is in use"), "{error}");
    assert_eq!(pair.a.run("ip rule").matches("725:").count(), 1);
}

#[test]
fn what_cannot_work_is_said_and_leaves_nothing_half_set_up() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let mut agent = Agent::start(&pair.a);
    let nothing_left = || {
        assert!(!pair.a.try_run("ip link show dev hf-wg0").status.success());
        assert!(pair.a.processes("wireguard-go").is_empty());
    };
    pair.a.run("ip link set up0 mtu 1300");
    let error = agent.ask("open");
    assert!(
        error.contains("up0 has an MTU of 1300") && error.contains("1360"),
        "{error}"
    );
    nothing_left();
    pair.a.run("ip link set up0 mtu 1400");

    agent.tell("userspace");
    agent.tell("implementation no-such-wireguard");
    let error = agent.ask("open");
    assert!(
        error.contains("no-such-wireguard") && error.contains("apt-get install wireguard-go"),
        "{error}"
    );
    agent.tell("implementation false");
    let error = agent.ask("open");
    assert!(error.contains("did not start: exit status: 1"), "{error}");
    nothing_left();
    agent.tell("implementation wireguard-go");

    // The other node's tunnel has its port in its own namespace; here somebody else has it.
    let mut other = Agent::start_with(&pair.a, &[("HANDFAST_TEST_RUN_DIR", "/nowhere")]);
    other.tell("bind 51872");
    let error = agent.ask("open");
    assert!(error.contains("UDP port 51872 is in use"), "{error}");
    nothing_left();
    drop(other);

    agent.tell("open");
    assert!(agent.tell("device").contains("mtu=1320"));
}

#[test]
fn a_socket_whose_daemon_is_gone_is_no_obstacle() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let mut agent = Agent::start(&pair.a);
    agent.tell("userspace");
    let key = agent.tell("open");
    agent.kill();
    for pid in pair.a.processes("wireguard-go") {
        pair.a.run(&format!("kill -9 {pid}"));
    }
    assert!(pair.a.run_dir().join("wireguard/hf-wg0.sock").exists());
    let mut agent = Agent::start(&pair.a);
    agent.tell("userspace");
    assert_ne!(agent.tell("open"), key, "keys are new with every device");
    assert!(agent.tell("device").contains("adopted=false"));
    // One run directory is one agent's: another namespace's device is not taken for ours.
    let run_dir = pair.a.run_dir().display().to_string();
    let mut stranger = Agent::start_with(&pair.b, &[("HANDFAST_TEST_RUN_DIR", &run_dir)]);
    let error = stranger.ask("open");
    assert!(error.contains("not in this network namespace"), "{error}");
}

#[test]
fn a_peer_that_no_session_made_is_removed_when_the_device_is_adopted() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let (mut a, _b) = connect_by_daemons(&pair);
    a.tell("foreign-peer");
    a.kill();
    let mut a = Agent::start(&pair.a);
    a.tell("open");
    let status = a.tell("status");
    assert_eq!(status.matches("peer ").count(), 1, "{status}");
    assert!(status.contains(pair.b.prefixes), "{status}");
}

#[test]
fn the_tunnels_port_is_open_to_signed_underlay_addresses_only() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let mut agent = Agent::start(&pair.a);
    // It hears one packet within `patience` seconds of the first byte on its input.
    let listener = "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
                    s.bind(('0.0.0.0', 51872)); print('ready', flush=True); sys.stdin.read(1); \
                    s.settimeout(float(sys.argv[1])); s.recvfrom(9)";
    let sender = format!(
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{}', 51872))",
        pair.a.underlay
    );
    let heard = |patience: &str| {
        let mut listening = std::process::Command::new("ip")
            .args(["netns", "exec", &pair.a.name, "python3", "-c"])
            .args([listener, patience])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        let output = listening.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        let sent = std::process::Command::new("ip")
            .args(["netns", "exec", &pair.b.name, "python3", "-c", &sender])
            .status();
        assert!(sent.unwrap().success());
        // What was sent waits in its socket.
        drop(listening.stdin.take());
        listening.wait().unwrap().success()
    };
    agent.tell(&format!("strangers-stay-out {}", pair.b.underlay));
    assert!(heard("30"), "a known node is let in");
    agent.tell("strangers-stay-out 192.0.2.77");
    assert!(!heard("1"), "a stranger is not");
    assert_ne!(agent.tell("table"), "0");
    pair.a.run("nft delete table inet handfast");
    assert_eq!(agent.tell("table"), "0", "that it is gone can be seen");
}

#[test]
fn probing_tells_without_leaving_a_trace() {
    if skipped() {
        return;
    }
    let pair = Pair::new();
    let before = pair.a.run("ip link");
    let mut agent = Agent::start(&pair.a);
    let kernel = agent.tell("probe");
    assert_eq!(pair.a.run("ip link"), before);
    let answer = agent.tell("kernel");
    assert_eq!(answer, "");
    let opened = agent.ask("open");
    if kernel == "false" {
        assert!(opened.contains("this kernel has no WireGuard"), "{opened}");
    } else {
        assert!(agent.tell("device").contains("kernel"), "{opened}");
    }
}
