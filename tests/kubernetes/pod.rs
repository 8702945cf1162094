//! A pod as a runtime makes it: a namespace, an interface by a plugin, and ours called behind it.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Output, Stdio};

use anyhow::Context;
use serde_json::{Value, json};

use crate::harness::lab::{Lab, Workload};
use crate::harness::mesh::{Node, workload_addresses};
use crate::harness::process::command;
use crate::support::binary;

/// What a runtime knows of a pod.
pub struct Pod {
    pub workload: Workload,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// IPv4 alone: this API server's nodes have one family.
    pub address: IpAddr,
    /// The node's side of its link.
    pub link: String,
}

impl Pod {
    /// Makes the namespace and, as a plugin of the kind of `ptp` would, its link with the addresses of `index`.
    pub fn make(
        lab: &Lab,
        node: &Node,
        namespace: &str,
        name: &str,
        uid: &str,
        index: u8,
    ) -> anyhow::Result<Self> {
        let workload = lab.workload(&format!("{}-{index}", node.name()))?;
        let [address, _] = workload_addresses(node.number, index);
        let link = format!("veth{}{index}", node.name());
        let [gateway, _] = workload_addresses(node.number, 1);
        let (host, pod) = (&node.host.ns, &workload.ns);
        host.ip(&format!(
            "link add {link} type veth peer name eth0 mtu 1380 netns {}",
            pod.name()
        ))?;
        host.ip(&format!("addr add {gateway}/32 dev {link}"))?;
        host.ip(&format!("link set {link} mtu 1380 up"))?;
        pod.ip("link set lo up")?;
        pod.ip("link set eth0 up")?;
        pod.ip(&format!("addr add {address}/32 dev eth0"))?;
        pod.ip(&format!("route add {gateway} dev eth0"))?;
        pod.ip(&format!("route add default via {gateway} dev eth0"))?;
        host.ip(&format!("route add {address} dev {link}"))?;
        Ok(Self {
            workload,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            address,
            link,
        })
    }

    /// The runtime's name of its sandbox.
    pub fn container(&self) -> String {
        self.workload.ns.name().to_owned()
    }

    /// What the plugins before ours have said.
    pub fn previous(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": self.link},
                {"name": "eth0", "sandbox": format!("/var/run/netns/{}", self.workload.ns.name())},
            ],
            "ips": [{"address": format!("{}/32", self.address), "interface": 1}],
            "dns": {},
        })
    }

    /// Calls the plugin as a runtime does on this node.
    pub fn cni(&self, node: &Node, command: &str) -> anyhow::Result<Said> {
        let config = json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "handfast-cni",
            "adminSocket": node.socket(), "prevResult": self.previous(),
        });
        call(node, command, &self.variables(), &config.to_string())
    }

    /// The variables that name it.
    pub fn variables(&self) -> Vec<(String, String)> {
        let pairs = [
            ("CNI_CONTAINERID", self.container()),
            (
                "CNI_NETNS",
                format!("/var/run/netns/{}", self.workload.ns.name()),
            ),
            ("CNI_IFNAME", "eth0".to_owned()),
            (
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}",
                    self.namespace, self.name, self.uid
                ),
            ),
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// Ends it as a runtime does.
    pub fn end(&self, node: &Node) -> anyhow::Result<()> {
        let said = self.cni(node, "DEL")?;
        anyhow::ensure!(said.ok, "DEL: {}", said.json);
        node.host.ns.ip(&format!("link del {}", self.link))
    }
}

/// How the plugin ended.
#[derive(Debug)]
pub struct Said {
    pub ok: bool,
    /// What it wrote to standard output; null for nothing.
    pub json: Value,
}

/// Calls the plugin, by its own name, with these variables and this input.
pub fn call(
    node: &Node,
    what: &str,
    variables: &[(String, String)],
    input: &str,
) -> anyhow::Result<Said> {
    let plugin = plugin(&node.host.dir)?;
    let mut run = command::<&str>(plugin, &[]);
    run.env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("CNI_COMMAND", what)
        .envs(variables.iter().cloned())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = run.spawn().context("start the plugin")?;
    let sent = child
        .stdin
        .take()
        .context("no input")?
        .write_all(input.as_bytes());
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output()?;
    // It need not read what it does not need.
    drop(sent);
    let text = String::from_utf8(stdout)?;
    let json = match text.trim() {
        "" => Value::Null,
        text => serde_json::from_str(text)
            .with_context(|| format!("not JSON: {text}; {}", String::from_utf8_lossy(&stderr)))?,
    };
    Ok(Said {
        ok: status.success(),
        json,
    })
}

/// The program under the plugin's name.
fn plugin(folder: &Path) -> anyhow::Result<std::path::PathBuf> {
    let path = folder.join("handfast-cni");
    match std::os::unix::fs::symlink(binary(), &path) {
        // Many may be called at once.
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(path),
    }
}
