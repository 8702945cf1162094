//! A Deployment that is rolled out, relabelled, moved and drained while requests never stop: none is lost.
//!
//! The test does what the Deployment's controller, the scheduler, the kubelets and the load balancer do: pods are made
//! of the Deployment's template as the API server has it, one more than wanted at a time; a pod gets requests when it
//! serves, and none any more before it goes.

use serde_json::{Value, json};

use crate::harness::process::Process;
use crate::harness::wait;
use crate::mesh::Mesh;
use crate::pod::Pod;
use crate::support::{SOON, serve};
use crate::traffic::Traffic;

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/shop/deployments/web";
const REPLICAS: usize = 4;

/// One pod of the Deployment, with what runs in it.
struct Replica {
    node: usize,
    pod: Pod,
    server: Process,
}

/// Who makes the Deployment's pods and takes them away.
struct Controller<'a> {
    mesh: &'a Mesh,
    traffic: &'a Traffic,
    replicas: Vec<Replica>,
    made: u8,
}

impl Controller<'_> {
    /// A pod of the template, ready on a node.
    fn start(&mut self, node: usize) {
        self.made += 1;
        let deployment = self.mesh.cluster.get(DEPLOYMENT).unwrap();
        let template = &deployment["spec"]["template"];
        let generation = deployment["metadata"]["generation"].to_string();
        let mut labels = vec![("pod-template-hash", generation.as_str())];
        let wanted = template["metadata"]["labels"].as_object().unwrap();
        labels.extend(
            wanted
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str().unwrap())),
        );
        let account = template["spec"]["serviceAccountName"].as_str().unwrap();
        let name = format!("web-{generation}-{}", self.made);
        let pod = self
            .mesh
            .pod(node, "shop", &name, account, &labels, 20 + self.made)
            .unwrap();
        let server = serve(&self.mesh.lab, &pod.workload);
        self.traffic.add(pod.address);
        self.replicas.push(Replica { node, pod, server });
    }

    /// Takes the oldest pod of these away, in the order in which a kubelet does.
    fn stop(&mut self, which: impl Fn(&Replica) -> bool, evict: bool) {
        let at = self.replicas.iter().position(which).unwrap();
        let Replica {
            node,
            pod,
            mut server,
        } = self.replicas.remove(at);
        let path = format!("/api/v1/namespaces/shop/pods/{}", pod.name);
        self.traffic.drain(pod.address).unwrap();
        if evict {
            let eviction = json!({
                "apiVersion": "policy/v1beta1", "kind": "Eviction",
                "metadata": {"name": pod.name, "namespace": "shop"},
                "deleteOptions": {"gracePeriodSeconds": 0},
            });
            let (code, said) = self
                .mesh
                .cluster
                .ask("POST", &format!("{path}/eviction"), Some(&eviction))
                .unwrap();
            assert_eq!(code, 201, "{said}");
        }
        server.kill();
        pod.end(&self.mesh.nodes[node]).unwrap();
        if !evict {
            self.mesh.cluster.delete(&path).unwrap();
        }
    }

    /// Another template, and every pod replaced by one of it.
    fn roll(&mut self, template: &Value) {
        let patch = json!({"spec": {"template": template}});
        self.mesh.cluster.patch(DEPLOYMENT, &patch).unwrap();
        for turn in 0..REPLICAS {
            self.start(turn % 2);
            self.stop(|_| true, false);
            self.traffic.more(20).unwrap();
        }
    }
}

#[test]
fn no_request_is_lost_while_a_deployment_lives_through_what_clusters_do() {
    let Some(mut mesh) = Mesh::start("no_request_is_lost") else {
        return;
    };
    mesh.node(1).unwrap();
    mesh.node(2).unwrap();
    let accounts = ["web", "web2", "client"];
    mesh.cluster
        .namespace("shop", &json!({"team": "sales"}), &accounts)
        .unwrap();
    let labels = json!({"app": "web"});
    mesh.cluster
        .create(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "replicas": REPLICAS, "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"serviceAccountName": "web", "containers": [{"name": "main", "image": "one"}]},
                },
            },
        }))
        .unwrap();
    mesh.only_clients().unwrap();
    let clients = [0, 1].map(|node| {
        let name = format!("client-{node}");
        mesh.pod(node, "shop", &name, "client", &[("app", "client")], 10)
            .unwrap()
    });
    let traffic = Traffic::default();
    let mesh = &mesh;
    let mut controller = Controller {
        mesh,
        traffic: &traffic,
        replicas: Vec::new(),
        made: 0,
    };
    for turn in 0..REPLICAS {
        controller.start(turn % 2);
    }
    std::thread::scope(|scope| {
        let running = traffic.running();
        for (turn, client) in clients.iter().enumerate() {
            let traffic = &traffic;
            scope.spawn(move || traffic.send_from(client, turn));
        }
        let begun = traffic.more(50);
        begun.unwrap_or_else(|error| panic!("{error:?}\n{}", mesh.evidence()));

        // A new image; then another service account, which is another identity.
        controller.roll(&json!({"spec": {"containers": [{"name": "main", "image": "two"}]}}));
        controller.roll(&json!({"spec": {"serviceAccountName": "web2"}}));

        // The API server is away for a while.
        mesh.cluster.down().unwrap();
        traffic.more(100).unwrap();
        mesh.cluster.up().unwrap();

        // A node is drained: nothing new comes there, and what is there moves.
        let cordoned = json!({"spec": {"unschedulable": true}});
        mesh.cluster.patch("/api/v1/nodes/n1", &cordoned).unwrap();
        while controller.replicas.iter().any(|replica| replica.node == 0) {
            controller.start(1);
            controller.stop(|replica| replica.node == 0, true);
            traffic.more(20).unwrap();
        }
        drop(running);

        // Labels of pods that run, and of their namespace: the same pods are others from now on. Their packets wait for
        // the new proofs, and longer than a client may: so nobody is asking any more.
        for replica in &controller.replicas {
            let path = format!("/api/v1/namespaces/shop/pods/{}", replica.pod.name);
            let tier = json!({"metadata": {"labels": {"tier": "front"}}});
            mesh.cluster.patch(&path, &tier).unwrap();
        }
        let buyers = json!({"metadata": {"labels": {"team": "buyers"}}});
        mesh.cluster
            .patch("/api/v1/namespaces/shop", &buyers)
            .unwrap();
        wait::until("the labels to be signed", SOON, || {
            let entries = mesh.entries_of("shop", "web2", REPLICAS);
            let signed = entries.iter().all(|entry| {
                entry["labels"]["tier"] == "front"
                    && entry["labels"]["io.cilium.k8s.namespace.labels.team"] == "buyers"
            });
            Ok(signed.then_some(()))
        })
        .unwrap();
    });
    let (done, lost, slowest) = traffic.books();
    println!(
        "{done} requests answered, {} lost, the slowest in {slowest:?}",
        lost.len()
    );
    assert!(lost.is_empty(), "{lost:#?}\n{}", mesh.evidence());
}
