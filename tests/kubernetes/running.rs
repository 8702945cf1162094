//! Pods that ran before the agent did: they get gates and an identity without anybody touching them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::group::Group;
use crate::harness::mesh::Endpoint;
use crate::harness::wait;
use crate::mesh::Mesh;
use crate::pod::Pod;
use crate::support::{SOON, serve};

const PORT: u16 = 7007;
/// An agent looks every few seconds; on a busy machine that is later.
const ADOPTED: Duration = Duration::from_secs(60);

/// The endpoint of a pod by its UID, with its identity.
fn adopted(mesh: &Mesh, pod: &Pod) -> Endpoint {
    let name = format!("pod-{}", pod.uid);
    wait::until(&format!("{} to be adopted", pod.name), ADOPTED, || {
        let all: Vec<Endpoint> = mesh.nodes[0].json(&["endpoint", "list"])?;
        Ok(all
            .into_iter()
            .find(|endpoint| endpoint.name == name && endpoint.spiffe_id.is_some()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", mesh.evidence()))
}

/// A connection from one pod to another, answered by what it sends.
fn talk(from: &Pod, to: &Pod) -> TcpStream {
    let address = SocketAddr::new(to.address, PORT);
    let listener = to
        .workload
        .ns
        .inside(move || Ok(TcpListener::bind(address)?))
        .unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        while matches!(stream.read(&mut byte), Ok(1)) {
            stream.write_all(&byte).unwrap();
        }
    });
    let stream = from
        .workload
        .ns
        .inside(move || Ok(TcpStream::connect_timeout(&address, SOON)?))
        .unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn answered(stream: &mut TcpStream) {
    let mut byte = [0];
    stream.write_all(&[7]).unwrap();
    stream.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn pods_that_ran_before_the_agent_are_gated_as_they_are() {
    let Some(mut mesh) = Mesh::start("pods_that_ran_before_the_agent") else {
        return;
    };
    mesh.node(1).unwrap();
    mesh.node(2).unwrap();
    mesh.cluster
        .namespace("shop", &json!({}), &["web", "client"])
        .unwrap();
    mesh.nodes[0].agent().unwrap().interrupt(SOON).unwrap();

    // Nobody calls a plugin for them.
    let made = |name: &str, account: &str, label: &str, index: u8| {
        let node = &mesh.nodes[0];
        let labels = [("app", label)];
        let uid = mesh
            .cluster
            .pod("shop", name, "n1", account, &labels)
            .unwrap();
        let pod = Pod::make(&mesh.lab, node, "shop", name, &uid, index).unwrap();
        let page = serve(&mesh.lab, &pod.workload);
        let group = Group::of_pod(&pod, &page).unwrap();
        (pod, page, group)
    };
    let (server, _server_page, _server_group) = made("web-1", "web", "web", 10);
    let (near, _near_page, _near_group) = made("near", "client", "near", 11);
    let mut open = talk(&near, &server);
    answered(&mut open);

    mesh.nodes[0].run().unwrap();
    let endpoint = adopted(&mesh, &server);
    assert_eq!(
        endpoint.spiffe_id.as_deref(),
        Some("spiffe://demo.handfast/ns/shop/sa/web")
    );
    adopted(&mesh, &near);
    // What was open stays open.
    answered(&mut open);

    // One that starts past the plugin while the agent runs.
    let labels = [("app", "late")];
    let uid = mesh
        .cluster
        .pod("shop", "late", "n1", "client", &labels)
        .unwrap();
    let late = Pod::make(&mesh.lab, &mesh.nodes[0], "shop", "late", &uid, 12).unwrap();
    let late_page = serve(&mesh.lab, &late.workload);
    let _late_group = Group::of_pod(&late, &late_page).unwrap();

    // From another node they are reached by what they are, and policy is theirs.
    let client = mesh
        .pod(1, "shop", "client-1", "client", &[("app", "client")], 10)
        .unwrap();
    mesh.until_reached(&client, &server, true);
    mesh.until_reached(&near, &server, true);
    mesh.only_clients().unwrap();
    mesh.until_reached(&near, &server, false);
    mesh.until_reached(&client, &server, true);
    adopted(&mesh, &late);

    // The runtime finds them as if it had called for them, and ends them.
    let node = &mesh.nodes[0];
    assert!(server.cni(node, "CHECK").unwrap().ok);
    server.end(node).unwrap();
    let left: Vec<Endpoint> = node.json(&["endpoint", "list"]).unwrap();
    assert!(left.iter().all(|left| left.name != endpoint.name));
    // One that is called for after all gets what it is called for.
    assert!(late.cni(node, "ADD").unwrap().ok);
    let late = mesh.endpoint(0, &late).unwrap().unwrap();
    assert!(late.name.starts_with("late."), "{late:?}");
}
