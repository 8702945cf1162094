//! Which addresses a node's pods have: from the source that the operator chose.
//!
//! Whatever it says, the registry takes only what lies in the CA's ranges and in nobody else's prefixes.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::Value;

use super::api;
use super::config::PrefixSource;
use crate::Error;

/// A file with more bytes is not read.
const MAX_FILE: u64 = 1 << 20;

/// Looks prefixes up.
pub(super) struct Prefixes {
    source: PrefixSource,
    client: Client,
}

impl Prefixes {
    pub(super) fn new(source: PrefixSource, client: Client) -> Self {
        Self { source, client }
    }

    /// The prefixes of the node of that name; none is an error.
    pub(super) async fn of(&self, name: &str, node: &Node) -> Result<Vec<IpNet>, Error> {
        let (texts, from) = match &self.source {
            PrefixSource::PodCidrs => (pod_cidrs(node), "spec.podCIDRs of its Node".to_owned()),
            PrefixSource::CiliumNodes => (
                self.cilium(name).await?,
                "spec.ipam.podCIDRs of its CiliumNode".to_owned(),
            ),
            PrefixSource::File { path } => (file(path, name)?, path.display().to_string()),
        };
        if texts.is_empty() {
            return Err(Error::Denied(format!(
                "node {name} has no prefixes: {from} names none"
            )));
        }
        let read = |text: &String| {
            let prefix: Option<IpNet> = text.parse().ok();
            // What is written with host bits may mean something else than is understood.
            prefix
                .filter(|prefix| prefix.trunc() == *prefix)
                .ok_or_else(|| {
                    let shown: String = text.chars().take(64).collect();
                    Error::invalid(
                        format!("prefix {shown:?} of node {name}"),
                        format!("{from}: write ADDRESS/LENGTH without host bits"),
                    )
                })
        };
        texts.iter().map(read).collect()
    }

    async fn cilium(&self, name: &str) -> Result<Vec<String>, Error> {
        let kind = GroupVersionKind::gvk("cilium.io", "v2", "CiliumNode");
        let resource = ApiResource::from_gvk_with_plural(&kind, "ciliumnodes");
        let nodes: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let node = nodes.get(name).await.map_err(api("get the CiliumNode"))?;
        let cidrs = node.data.pointer("/spec/ipam/podCIDRs");
        let cidrs = cidrs.and_then(Value::as_array).into_iter().flatten();
        Ok(cidrs.filter_map(Value::as_str).map(str::to_owned).collect())
    }
}

/// Kubernetes before dual stack knew one only.
fn pod_cidrs(node: &Node) -> Vec<String> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    match &spec.pod_cidrs {
        Some(cidrs) if !cidrs.is_empty() => cidrs.clone(),
        _ => spec.pod_cidr.iter().cloned().collect(),
    }
}

fn file(path: &std::path::Path, name: &str) -> Result<Vec<String>, Error> {
    use std::io::Read;
    let mut text = String::new();
    let open = std::fs::File::open(path).map_err(Error::io("cannot open", path))?;
    open.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(Error::io("cannot read", path))?;
    let bad = |problem: String| Error::invalid(path.display().to_string(), problem);
    if text.len() as u64 > MAX_FILE {
        return Err(bad(format!("more than {MAX_FILE} bytes")));
    }
    let mut nodes: BTreeMap<String, Vec<String>> =
        serde_norway::from_str(&text).map_err(|error| bad(error.to_string()))?;
    Ok(nodes.remove(name).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::NodeSpec;

    #[test]
    fn a_node_of_before_dual_stack_has_its_one_prefix() {
        let node = |cidr: Option<&str>, cidrs: Option<&[&str]>| Node {
            spec: Some(NodeSpec {
                pod_cidr: cidr.map(str::to_owned),
                pod_cidrs: cidrs.map(|all| all.iter().map(|one| (*one).to_owned()).collect()),
                ..NodeSpec::default()
            }),
            ..Node::default()
        };
        assert_eq!(pod_cidrs(&node(Some("10.1.0.0/24"), None)), ["10.1.0.0/24"]);
        let both = node(Some("10.1.0.0/24"), Some(&["10.1.0.0/24", "fd00:1::/64"]));
        assert_eq!(pod_cidrs(&both), ["10.1.0.0/24", "fd00:1::/64"]);
        assert!(pod_cidrs(&Node::default()).is_empty());
    }

    #[test]
    fn a_file_names_prefixes_by_node_and_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prefixes.yaml");
        std::fs::write(
            &path,
            "n1: [10.1.0.0/24]\nn2: [10.2.0.0/24, 'fd00:2::/64']\n",
        )
        .unwrap();
        assert_eq!(file(&path, "n2").unwrap(), ["10.2.0.0/24", "fd00:2::/64"]);
        assert!(file(&path, "n3").unwrap().is_empty());
        std::fs::write(&path, "n1: 7\n").unwrap();
        assert!(file(&path, "n1").is_err());
        std::fs::write(&path, "#".repeat(2 << 20)).unwrap();
        let long = file(&path, "n1").unwrap_err().to_string();
        assert!(long.contains("more than"), "{long}");
    }
}
