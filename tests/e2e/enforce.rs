//! From audit to required: on the word of what the gates of every node have seen.

use std::time::Duration;

use crate::harness::mesh::workload_addresses;
use crate::harness::process::{Finished, command};
use crate::harness::wait;
use crate::support::{self, Mesh, PAGE, SOON};

/// What workloads open is proven by handfast; what the world opens nobody proves.
const AUDITED: &str = "
apiVersion: handfast.io/v1alpha1
kind: HandfastPolicy
metadata: {name: db}
spec:
  endpointSelector: {matchLabels: {app: db}}
  ingress:
    - fromEndpoints: [{matchLabels: {app: web}}]
      authentication: {mode: audit}   # until everybody is seen
";

const WORLD: &str = "    - fromEntities: [world]
      authentication: {mode: audit}
";

/// Nodes report each ten seconds.
const REPORTED: Duration = Duration::from_secs(60);

#[test]
fn audited_rules_are_required_once_every_pair_that_was_seen_is_proven_and_not_before() {
    let Some(_turn) = support::turn("enforce") else {
        return;
    };
    let mesh = Mesh::start();
    let db = mesh.workload(&mesh.n1, "db", &["app=db"], 2);
    let web = mesh.workload(&mesh.n2, "web", &["app=web"], 3);
    let _server = support::serve(&mesh.lab, &db);
    let addresses = workload_addresses(1, 2);
    let get = || support::curl(&web, &support::url(addresses[0]), 5);
    let enforce = |words: &[&str]| -> Finished {
        let mut all = vec![
            "policy",
            "enforce",
            "db",
            "--since",
            "15s",
            "--least-flows",
            "3",
        ];
        all.extend(words);
        mesh.authority.cli(&all).unwrap()
    };

    mesh.apply(&format!("{AUDITED}{WORLD}"));
    support::fails(&enforce(&[]), &["15s are asked for", "nothing was changed"]);
    reach_from_outside(&mesh, addresses[0]);
    wait::until("the world among what was seen", REPORTED, || {
        get().unwrap();
        reach_from_outside(&mesh, addresses[0]);
        let said = enforce(&["--dry-run"]);
        let waits = said.stderr.contains("asked for") || said.stderr.contains("reported nothing");
        Ok((!waits && said.stderr.contains("world -> ")).then_some(()))
    })
    .unwrap();
    let said = enforce(&[]);
    support::fails(
        &said,
        &["spec.ingress[1]: world -> ", "has no proof on node n1"],
    );
    assert!(!said.stderr.contains("spec.ingress[0]:"), "{said:?}");

    // Another document: what was seen under the last one no longer counts.
    mesh.apply(AUDITED);
    support::fails(&enforce(&[]), &["has been what it is for"]);
    wait::until("a policy that may be enforced", REPORTED, || {
        assert_eq!(get().as_deref(), Ok(PAGE));
        Ok((enforce(&["--dry-run"]).code() == 0).then_some(()))
    })
    .unwrap();
    let said = enforce(&["--reason", "a test"])
        .success("policy enforce")
        .unwrap();
    assert!(
        said.stdout
            .contains("HandfastPolicy/db requires proofs now"),
        "{said:?}"
    );
    assert_eq!(get().as_deref(), Ok(PAGE), "{}", mesh.evidence());
    support::fails(&enforce(&[]), &["there is nothing to enforce"]);
}

/// Opens a connection from the CA's machine, which is no node.
fn reach_from_outside(mesh: &Mesh, address: std::net::IpAddr) {
    let outer = mesh.authority.host();
    let via = mesh.n1.host.addresses[usize::from(address.is_ipv6())].to_string();
    let to = address.to_string();
    let place = &outer.place;
    let mut route = command("ip", &["route", "replace", &to, "via", &via]);
    place.run(&mut route, SOON).unwrap().success("ip").unwrap();
    let url = support::url(address);
    let words = ["-sS", "--noproxy", "*", "-m", "2", "-o", "/dev/null", &url];
    // Whether it passes is the audit mode's to say, and the test of what lies outside.
    place.run(&mut command("curl", &words), SOON).unwrap();
}
