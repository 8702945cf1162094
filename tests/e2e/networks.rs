//! Networks of others on the nodes, as they are found there: hand-made equivalents of the `bridge` plugin and of flannel with
//! VXLAN. First they work without handfast, in clear; then nothing of them is in clear, and they work as before.

use std::net::{IpAddr, Ipv4Addr};

use crate::harness::capture::{Capture, WireWatch};
use crate::harness::lab::{Lab, Workload, underlay};
use crate::harness::mesh::{Authority, Node, TUNNEL_PORTS, ranges, workload_addresses};
use crate::harness::process::{Process, command};
use crate::harness::wait;
use crate::support::{self, Mesh, PAGE, SOON};

/// The service's address, which no interface has.
const SERVICE: [&str; 2] = ["10.96.0.10", "fd96::10"];

/// A network's part on a node: its bridge, and how its workloads reach other nodes.
fn bridge(node: &Node) {
    let number = node.number;
    let ns = &node.host.ns;
    for line in [
        "link add cni0 type bridge".to_owned(),
        format!("addr add 10.77.{number}.1/24 dev cni0"),
        format!("-6 addr add fd77:0:0:{number}::1/64 dev cni0 nodad"),
        "link set cni0 up".to_owned(),
    ] {
        ns.ip(&line).unwrap();
    }
    // As flannel and the bridge plugin (`ipMasq`) write it: what leaves the cluster gets the node's address.
    let rules = format!(
        "table inet cni {{
           chain leaves {{
             type nat hook postrouting priority srcnat;
             ip saddr 10.77.{number}.0/24 ip daddr != 10.77.{number}.0/24 masquerade
             ip6 saddr fd77:0:0:{number}::/64 ip6 daddr != fd77:0:0:{number}::/64 masquerade
           }}
         }}"
    );
    nft(node, &rules);
}

fn nft(node: &Node, rules: &str) {
    let said = node.host.place.run(&mut command("nft", &[rules]), SOON);
    said.unwrap().success("nft").unwrap();
}

/// A workload on a node's bridge, with the addresses of its number, before any agent knows of it.
fn plugged(lab: &Lab, node: &Node, short: &str, index: u8) -> Workload {
    let workload = lab.workload(short).unwrap();
    let (ns, number) = (&node.host.ns, node.number);
    let netns = workload.ns.name();
    ns.ip(&format!(
        "link add v-{short} type veth peer name eth0 netns {netns}"
    ))
    .unwrap();
    ns.ip(&format!("link set v-{short} master cni0 up"))
        .unwrap();
    let [v4, v6] = workload_addresses(number, index);
    for line in [
        "link set lo up".to_owned(),
        format!("addr add {v4}/24 dev eth0"),
        format!("-6 addr add {v6}/64 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
        format!("route add default via 10.77.{number}.1"),
        format!("-6 route add default via fd77:0:0:{number}::1"),
    ] {
        workload.ns.ip(&line).unwrap();
    }
    workload
}

/// host-gw: plain routes between the nodes.
fn host_gw(node: &Node) {
    let other = 3 - node.number;
    let [v4, v6] = underlay(other);
    for line in [
        format!("route add 10.77.{other}.0/24 via {v4}"),
        format!("-6 route add fd77:0:0:{other}::/64 via {v6}"),
    ] {
        node.host.ns.ip(&line).unwrap();
    }
}

/// VXLAN as flannel makes it: a device with the network's own address, the other node's as its neighbour.
fn vxlan(node: &Node) {
    let (number, other) = (node.number, 3 - node.number);
    let ([here, _], [there, _]) = (underlay(number), underlay(other));
    let mac = |number: u8| format!("02:00:00:00:77:{number:02x}");
    let (mine, theirs) = (mac(number), mac(other));
    for line in [
        format!(
            "link add flannel.1 address {mine} type vxlan id 1 dstport 8472 local {here} dev eth0 nolearning"
        ),
        format!("addr add 10.77.{number}.0/32 dev flannel.1"),
        format!("-6 addr add fd77:0:0:{number}::/128 dev flannel.1 nodad"),
        "link set flannel.1 up".to_owned(),
        format!("neigh add 10.77.{other}.0 lladdr {theirs} dev flannel.1"),
        format!("-6 neigh add fd77:0:0:{other}:: lladdr {theirs} dev flannel.1"),
        format!("route add 10.77.{other}.0/24 via 10.77.{other}.0 dev flannel.1 onlink"),
        format!("-6 route add fd77:0:0:{other}::/64 via fd77:0:0:{other}:: dev flannel.1 onlink"),
    ] {
        node.host.ns.ip(&line).unwrap();
    }
    let entry = format!("fdb append {theirs} dev flannel.1 dst {there}");
    let words: Vec<&str> = entry.split(' ').collect();
    let said = node.host.place.run(&mut command("bridge", &words), SOON);
    said.unwrap().success("bridge fdb").unwrap();
}

#[test]
fn workloads_on_a_bridge_with_plain_routes_between_the_nodes_reach_each_other_and_nothing_is_in_clear()
 {
    runs_beside("bridge, host-gw", host_gw);
}

#[test]
fn workloads_on_a_bridge_behind_vxlan_reach_each_other_and_nothing_is_in_clear() {
    runs_beside("bridge, vxlan", vxlan);
}

fn runs_beside(what: &str, between: fn(&Node)) {
    let Some(_turn) = support::turn(what) else {
        return;
    };
    let lab = Lab::create("hft").unwrap();
    let authority = Authority::start(&lab, support::binary()).unwrap();
    let [mut n1, mut n2] = [1, 2].map(|number| {
        let node = Node::create(&lab, support::binary(), number).unwrap();
        bridge(&node);
        between(&node);
        node
    });
    let client = plugged(&lab, &n1, "client", 2);
    let beside = plugged(&lab, &n1, "beside", 3);
    let server = plugged(&lab, &n2, "server", 2);
    let served: Vec<Process> = [&beside, &server]
        .into_iter()
        .map(|workload| support::serve(&lab, workload))
        .collect();
    let watch = WireWatch::new(ranges(), b"no canary", PAGE.as_bytes(), &TUNNEL_PORTS);
    let wire = Capture::start(lab.switch(), watch).unwrap();

    // Without handfast: it works, and the capture sees what it is to see no more afterwards.
    let far = workload_addresses(2, 2);
    for address in far {
        let page = support::curl(&client, &support::url(address), 5);
        assert_eq!(page.as_deref(), Ok(PAGE), "without handfast: {address}");
    }
    let seen = wait::until("the page in clear", SOON, || {
        let (clear, secrets) = wire.with(|wire| (wire.clear, wire.secrets));
        Ok((clear > 0 && secrets > 0).then_some(()))
    });
    seen.unwrap();

    for node in [&mut n1, &mut n2] {
        node.join(&authority).unwrap();
        node.run().unwrap();
    }
    let mesh = Mesh {
        n1,
        n2,
        authority,
        lab,
    };
    for (node, workload, index) in [
        (&mesh.n1, &client, 2),
        (&mesh.n1, &beside, 3),
        (&mesh.n2, &server, 2),
    ] {
        let (name, netns) = (&workload.short, workload.ns.name());
        mesh.authority.entry(name, netns, &["side=any"]).unwrap();
        // The link is the network's, and stays what it is.
        node.attach(workload, index).unwrap();
        node.identified(name).unwrap();
    }
    mesh.apply(POLICY);
    let before = wire.with(|wire| {
        (wire.clear, wire.secrets) = (0, 0);
        wire.findings.clear();
        wire.tunnelled
    });
    let near = workload_addresses(1, 3);
    let service: [IpAddr; 2] = SERVICE.map(|address| address.parse().unwrap());
    mesh.service(&mesh.n1, service, far);
    for address in far.into_iter().chain(near).chain(service) {
        let page = support::curl(&client, &support::url(address), 10);
        assert_eq!(page.as_deref(), Ok(PAGE), "{address}\n{}", mesh.evidence());
    }
    // The network's own ways stay: the gateway on the bridge answers, and the node reaches its workloads.
    let gateway = Ipv4Addr::new(10, 77, 1, 1).to_string();
    let words = ["-c", "1", "-W", "5", &gateway];
    let said = client
        .place
        .run(&mut command("ping", &words), SOON)
        .unwrap();
    assert_eq!(said.code(), 0, "{said:?}\n{}", mesh.evidence());
    let words = ["-sS", "-g", "-m", "5", &support::url(near[0])];
    let said = mesh
        .n1
        .host
        .place
        .run(&mut command("curl", &words), SOON)
        .unwrap();
    assert_eq!(said.stdout, PAGE, "{said:?}\n{}", mesh.evidence());

    // What the network would have done by itself meets the tripwire: the tunnel's routes are gone for a moment.
    for family in ["-4", "-6"] {
        let gone = format!("{family} rule del priority 725");
        mesh.n1.host.ns.ip(&gone).unwrap();
    }
    for address in far {
        let _ = support::curl(&client, &support::url(address), 1);
    }
    let (clear, secrets, tunnelled) = wire.with(|wire| (wire.clear, wire.secrets, wire.tunnelled));
    let found = wire.with(|wire| wire.describe_findings());
    assert_eq!((clear, secrets), (0, 0), "{found}");
    assert!(tunnelled > before, "nothing went through the tunnel");
    assert_eq!(wire.lost().unwrap(), 0, "the capture missed frames");
    drop(served);
}

/// Everybody proves himself.
const POLICY: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: networks}
spec:
  endpointSelector: {matchLabels: {side: any}}
  ingress:
    - fromEndpoints: [{matchLabels: {side: any}}]
      authentication: {mode: required}
    - fromEntities: [host]
";
