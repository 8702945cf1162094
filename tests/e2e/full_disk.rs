//! A disk that refuses what the agent must remember: nothing opens by that and nothing is cut, what is revoked is cut
//! all the same, and with the disk everything comes back.

use crate::harness::mesh::{Alarm, spiffe_id, workload_addresses};
use crate::harness::wait;
use crate::support::{self, Mesh, PAGE, SOON};

const POLICY: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: full-disk}
spec:
  endpointSelector: {matchLabels: {run: nginx}}
  ingress:
    - fromEndpoints: [{matchLabels: {client: good}}]
      authentication: {mode: required}
";

#[test]
fn a_disk_that_refuses_the_snapshot_opens_nothing_cuts_nothing_and_keeps_no_revocation_back() {
    let Some(_turn) = support::turn("a full disk") else {
        return;
    };
    let mesh = Mesh::start();
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    let _http = support::serve(&mesh.lab, &server);
    mesh.apply(POLICY);
    let good = mesh.workload(&mesh.n1, "good", &["client=good"], 3);
    let url = support::url(workload_addresses(2, 2)[0]);
    assert_eq!(support::curl(&good, &url, 5).as_deref(), Ok(PAGE));

    // Nothing can be renamed to the name of a folder.
    let snapshot = mesh.n1.run_dir().join("core.json");
    std::fs::remove_file(&snapshot).unwrap();
    std::fs::create_dir(&snapshot).unwrap();
    let late = mesh.workload(&mesh.n1, "late", &["client=good"], 4);
    let complains = |alarm: &Alarm| alarm.text.contains("until this can be stored");
    wait::until("the alarm", SOON, || {
        Ok(mesh
            .status(&mesh.n1)
            .alarms
            .iter()
            .any(complains)
            .then_some(()))
    })
    .unwrap();
    assert!(
        support::curl(&late, &url, 4).is_err(),
        "{}",
        mesh.evidence()
    );
    let established = support::curl(&good, &url, 5);
    assert_eq!(established.as_deref(), Ok(PAGE), "{}", mesh.evidence());

    let id = spiffe_id("good");
    let revoke = |more: &[&str]| {
        let words = ["revoke", "--spiffe-id", &id, "--reason", "test"];
        let said = mesh.authority.cli(&[&words, more].concat()).unwrap();
        said.success("handfast revoke").unwrap();
    };
    revoke(&[]);
    wait::until("the cut", SOON, || {
        Ok(support::curl(&good, &url, 1).is_err().then_some(()))
    })
    .unwrap();
    revoke(&["--undo"]);

    std::fs::remove_dir(&snapshot).unwrap();
    for client in [&late, &good] {
        wait::until("what was held back", SOON, || {
            Ok(support::curl(client, &url, 3).ok())
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", mesh.evidence()));
    }
    assert!(snapshot.is_file());
}
