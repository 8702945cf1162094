//! A cluster, its authority and two nodes that have joined by their agents' tokens.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Value, json};

use crate::cluster::{Cluster, SYSTEM, binaries};
use crate::harness::lab::{Lab, underlay};
use crate::harness::mesh::{Authority, Endpoint, Node, TRUST_DOMAIN};
use crate::harness::process::{Finished, command};
use crate::harness::{evidence, wait};
use crate::pod::Pod;
use crate::support::{SOON, Turn, binary, curl, turn, url};

/// The audience of agents' tokens.
pub const AUDIENCE: &str = "handfast-ca";

/// The lab is last, so that it is dropped last.
pub struct Mesh {
    pub nodes: Vec<Node>,
    pub authority: Authority,
    pub cluster: Cluster,
    pub lab: Lab,
    _turn: Turn,
}

impl Mesh {
    /// Starts a cluster, and an authority that serves it with the rights of its service account. None where that
    /// cannot be.
    pub fn start(test: &str) -> Option<Self> {
        Self::start_with(test, |_| {})
    }

    /// The same, with what `set` changes of the authority's configuration.
    pub fn start_with(test: &str, set: impl FnOnce(&mut Value)) -> Option<Self> {
        let turn = turn(test)?;
        let binaries = match binaries() {
            Ok(binaries) => binaries,
            Err(missing) => {
                eprintln!("skipped: {test}: {missing}");
                return None;
            }
        };
        Some(Self::build(turn, binaries, set).unwrap())
    }

    fn build(turn: Turn, binaries: PathBuf, set: impl FnOnce(&mut Value)) -> anyhow::Result<Self> {
        let lab = Lab::create("hfk")?;
        let mut authority = Authority::start(&lab, binary())?;
        let cluster = Cluster::start(&lab, authority.host(), binaries)?;
        let definition = authority
            .cli(&["policy", "schema", "--crd"])?
            .success("policy schema")?;
        let definition: Value = serde_norway::from_str(&definition.stdout)?;
        cluster.define(&definition)?;
        let mut config = json!({
            "kubeconfig": cluster.kubeconfig("handfast-ca")?,
            "nodes": {
                "audience": AUDIENCE,
                "service_accounts": [format!("{SYSTEM}/handfast-agent")],
            },
            "workloads": {},
            "policies": ["HandfastPolicy", "NetworkPolicy"],
            "enforcer": "handfast",
        });
        set(&mut config);
        let file = authority.host().dir.join("kubernetes.yaml");
        std::fs::write(&file, config.to_string())?;
        authority.server()?.interrupt(SOON)?;
        authority.also(&["--kubernetes", &file.display().to_string()]);
        authority.serve()?;
        Ok(Self {
            nodes: Vec::new(),
            authority,
            cluster,
            lab,
            _turn: turn,
        })
    }

    /// Registers a node with the cluster, lets it join, and runs its agent.
    pub fn node(&mut self, number: u8) -> anyhow::Result<&mut Node> {
        let mut node = Node::create(&self.lab, binary(), number)?;
        let addresses = underlay(number).map(|address| address.to_string());
        let prefixes = [format!("10.77.{number}.0/24")];
        self.cluster.node(node.name(), &prefixes, &addresses)?;
        self.token(&node, AUDIENCE)?;
        self.join(&node, node.name())?
            .success("handfast agent join")?;
        node.run()?;
        self.nodes.push(node);
        self.nodes.last_mut().context("no node")
    }

    /// The pod of a node's agent, and its token where the kubelet would put it.
    pub fn token(&self, node: &Node, audience: &str) -> anyhow::Result<()> {
        let pod = format!("agent-{}", node.name());
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}");
        let uid = match self.cluster.ask("GET", &path, None)? {
            (200, pod) => pod["metadata"]["uid"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            _ => self
                .cluster
                .pod(SYSTEM, &pod, node.name(), "handfast-agent", &[])?,
        };
        let token = self
            .cluster
            .token("handfast-agent", Some(audience), Some((&pod, &uid)))?;
        Ok(std::fs::write(node.host.dir.join("token"), token)?)
    }

    /// Joins as the agent's pod does, claiming to be on `claimed`.
    pub fn join(&self, node: &Node, claimed: &str) -> anyhow::Result<Finished> {
        let status = self.authority.cli(&["ca", "status", "--output", "json"])?;
        let status: Value = serde_json::from_str(&status.success("ca status")?.stdout)?;
        let root = status["root_fingerprint"]
            .as_str()
            .context("no fingerprint")?;
        let mut join = command(binary(), &["agent", "join", "--unless-joined"]);
        join.arg("--k8s-token")
            .arg(node.host.dir.join("token"))
            .args(["--k8s-node", claimed])
            .args(["--ca-address", &Authority::address()])
            .args(["--trust-domain", TRUST_DOMAIN, "--root", root])
            .arg("--data-dir")
            .arg(node.data_dir());
        node.host.place.run(&mut join, SOON)
    }

    /// A pod that runs: scheduled, its link made, and let start by our plugin.
    pub fn pod(
        &self,
        node: usize,
        namespace: &str,
        name: &str,
        account: &str,
        labels: &[(&str, &str)],
        index: u8,
    ) -> anyhow::Result<Pod> {
        let node = &self.nodes[node];
        let uid = self
            .cluster
            .pod(namespace, name, node.name(), account, labels)?;
        let pod = Pod::make(&self.lab, node, namespace, name, &uid, index)?;
        let said = pod.cni(node, "ADD")?;
        anyhow::ensure!(said.ok, "ADD of {name}: {}", said.json);
        Ok(pod)
    }

    /// Entries of a service account, waited for until there are so many.
    pub fn entries_of(&self, namespace: &str, account: &str, count: usize) -> Vec<Value> {
        let id = format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}");
        wait::until(&format!("{count} entries of {id}"), SOON, || {
            let mut entries = self.entries()?;
            entries.retain(|entry| entry["spiffe_id"] == id.as_str());
            Ok((entries.len() == count).then_some(entries))
        })
        .unwrap()
    }

    /// Is the page of a pod reached from another? What is not there after two seconds is not.
    pub fn reaches(&self, from: &Pod, to: &Pod) -> bool {
        curl(&from.workload, &url(to.address), 2).is_ok()
    }

    /// One request, which is answered, however slow the machine.
    #[track_caller]
    pub fn still_reaches(&self, from: &Pod, to: &Pod) {
        let answer = curl(&from.workload, &url(to.address), 12);
        assert!(
            answer.is_ok(),
            "{} does not reach {}: {answer:?}\n{}",
            from.name,
            to.name,
            self.evidence()
        );
    }

    /// From now on only clients reach the shop's web, and proven.
    pub fn only_clients(&self) -> anyhow::Result<()> {
        let policy = json!({
            "apiVersion": "handfast.io/v1alpha1", "kind": "HandfastPolicy",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "endpointSelector": {"matchLabels": {"app": "web"}},
                "ingress": [{
                    "fromEndpoints": [{"matchLabels": {"app": "client"}}],
                    "authentication": {"mode": "required"},
                }],
            },
        });
        self.cluster.create(&policy).map(drop)
    }

    /// Waits until the page of a pod is reached from another, or no longer is.
    pub fn until_reached(&self, from: &Pod, to: &Pod, wanted: bool) {
        let what = format!("{} to reach {}: {wanted}", from.name, to.name);
        let reached = wait::until(&what, SOON, || {
            Ok((self.reaches(from, to) == wanted).then_some(()))
        });
        reached.unwrap_or_else(|error| panic!("{error}\n{}", self.evidence()));
    }

    /// The event that says why a policy is not in force, waited for.
    pub fn refused(&self, namespace: &str, policy: &str) -> String {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        wait::until(&format!("{policy} to be refused"), SOON, || {
            let events = self.cluster.get(&path)?;
            let mut events = events["items"].as_array().into_iter().flatten();
            let refused = events
                .find(|event| event["reason"] == "Refused" && event["regarding"]["name"] == policy);
            let note = refused.and_then(|event| event["note"].as_str());
            Ok(note.map(str::to_owned))
        })
        .unwrap()
    }

    /// The endpoint of a pod.
    pub fn endpoint(&self, node: usize, pod: &Pod) -> anyhow::Result<Option<Endpoint>> {
        let all: Vec<Endpoint> = self.nodes[node].json(&["endpoint", "list"])?;
        let begins = format!("{}.", pod.name);
        Ok(all
            .into_iter()
            .find(|endpoint| endpoint.name.starts_with(&begins)))
    }

    /// All entries.
    pub fn entries(&self) -> anyhow::Result<Vec<Value>> {
        let said = self.authority.cli(&["entry", "list", "--output", "json"])?;
        Ok(serde_json::from_str(&said.success("entry list")?.stdout)?)
    }

    /// What a failure leaves to look at.
    pub fn evidence(&self) -> String {
        let nodes: Vec<&Node> = self.nodes.iter().collect();
        evidence::gather(&nodes, &self.lab.logs())
    }
}
