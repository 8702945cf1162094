//! The whole path once: a token joins a node, a pod becomes an entry, the plugin gates it, and two pods on two nodes
//! talk by proven identities.

use serde_json::json;

use crate::harness::mesh::Pair;
use crate::harness::wait;
use crate::mesh::Mesh;
use crate::support::{PAGE, SOON, curl, serve, url};

#[test]
fn pods_on_two_nodes_talk_by_the_identities_of_their_service_accounts() {
    let Some(mut mesh) = Mesh::start("pods_on_two_nodes") else {
        return;
    };
    mesh.node(1).unwrap();
    mesh.node(2).unwrap();
    mesh.cluster
        .namespace("shop", &json!({"team": "sales"}), &["web", "client"])
        .unwrap();
    let server = mesh
        .pod(0, "shop", "web-1", "web", &[("app", "web")], 10)
        .unwrap();
    let client = mesh
        .pod(1, "shop", "client-1", "client", &[("app", "client")], 10)
        .unwrap();
    let endpoint = mesh.endpoint(0, &server).unwrap().unwrap();
    assert_eq!(
        endpoint.spiffe_id.as_deref(),
        Some("spiffe://demo.handfast/ns/shop/sa/web")
    );

    let _page = serve(&mesh.lab, &server.workload);
    {
        let address = server.address;
        let page = curl(&client.workload, &url(address), 5);
        assert_eq!(
            page.as_deref().ok(),
            Some(PAGE),
            "{address} {page:?}\n{}",
            mesh.evidence()
        );
    }
    wait::until("the pair to be proven", SOON, || {
        let pairs: Vec<Pair> = mesh.nodes[0].json(&["pair", "list"])?;
        let proven = pairs.iter().any(|pair| {
            pair.local.ends_with("/ns/shop/sa/web") && pair.remote.ends_with("/ns/shop/sa/client")
        });
        Ok(proven.then_some(()))
    })
    .unwrap();

    // On a node the CA cannot be asked; its agent says how the flow stands, and by which rules.
    let [from, to] =
        ["client", "web"].map(|account| format!("spiffe://demo.handfast/ns/shop/sa/{account}"));
    let asked = ["policy", "explain", &from, &format!("{to}:80"), "--proof"];
    let proven = |line: &str| line.starts_with("pair") && line.contains(" ok ");
    // The other node may have recorded it a moment before.
    wait::until("the pair on the client's node", SOON, || {
        let said = mesh.nodes[1].cli(&asked)?.success("policy explain")?;
        let why = "the CA cannot be asked here";
        anyhow::ensure!(said.stderr.contains(why), "{said:?}");
        Ok(said.stdout.lines().any(proven).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?}", mesh.nodes[1].cli(&asked)));
}
