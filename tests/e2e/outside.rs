//! What lies outside the mesh: reached by default, without a tunnel, and no longer when a policy says so. The node
//! itself is outside too, and no destination beside the others.

use std::net::IpAddr;

use crate::harness::mesh::workload_addresses;
use crate::harness::process::{Process, command};
use crate::harness::wait;
use crate::support::{self, Mesh, SOON};

/// Nothing but what no policy speaks of may leave.
const CLOSED: &str = r"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: closed}
spec:
  endpointSelector: {matchLabels: {app: closed}}
  egress:
    - toCIDR: [198.51.100.0/24]
  ingress:
    - fromCIDR: [198.51.100.0/24]
";

#[test]
fn outside_the_mesh_is_open_by_default_and_closed_by_policy_the_node_itself_included() {
    let Some(_turn) = support::turn("outside") else {
        return;
    };
    let mesh = Mesh::start();
    let workload = mesh.workload(&mesh.n1, "closed", &["app=closed"], 3);
    let inside = workload_addresses(1, 3);
    let (outer, node) = (mesh.authority.host(), &mesh.n1.host);
    for (address, gateway) in inside.iter().zip(&node.addresses) {
        let (to, via) = (address.to_string(), gateway.to_string());
        let route = ["route", "replace", &to, "via", &via];
        let mut route = command("ip", &route);
        outer
            .place
            .run(&mut route, SOON)
            .unwrap()
            .success("ip")
            .unwrap();
    }
    let outer_server = web(outer, "web-outside");
    let node_server = web(node, "web-node");
    let inner_server = support::serve(&mesh.lab, &workload);

    let destinations = || outer.addresses.iter().chain(&node.addresses);
    for address in destinations() {
        let got = support::curl(&workload, &url(*address), 5);
        assert!(got.is_ok(), "{address}: {got:?}\n{}", mesh.evidence());
    }
    for address in inside {
        assert!(reaches(&mesh, address, 5), "{address} from outside");
    }

    mesh.apply(CLOSED);
    for address in destinations() {
        assert!(
            support::curl(&workload, &url(*address), 1).is_err(),
            "{address}"
        );
    }
    for address in inside {
        assert!(!reaches(&mesh, address, 1), "{address} from outside");
    }
    drop((outer_server, node_server, inner_server));
}

/// Whether the host outside the mesh gets a page of an address.
fn reaches(mesh: &Mesh, address: IpAddr, limit_s: u8) -> bool {
    let limit = limit_s.to_string();
    let url = support::url(address);
    let words = ["-sS", "-g", "--noproxy", "*", "-m", &limit, &url];
    let mut curl = command("curl", &words);
    mesh.authority
        .host()
        .place
        .run(&mut curl, SOON)
        .unwrap()
        .code()
        == 0
}

fn url(address: IpAddr) -> String {
    format!("http://{}/", std::net::SocketAddr::new(address, 8081))
}

/// A web server on port 8081 of both families.
fn web(host: &crate::harness::lab::Host, name: &str) -> Process {
    let words = ["-m", "http.server", "8081", "--bind", "::", "--directory"];
    let mut server = command("python3", &words);
    server.arg(&host.dir);
    let process = host.place.spawn(name, &mut server).unwrap();
    wait::until("the web server", SOON, || {
        let probe = [
            "-sS",
            "-g",
            "--noproxy",
            "*",
            "-m",
            "1",
            "http://[::1]:8081/",
        ];
        let said = host.place.run(&mut command("curl", &probe), SOON)?;
        Ok((said.code() == 0).then_some(()))
    })
    .unwrap();
    process
}
