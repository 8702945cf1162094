//! What an operator says of the cluster: which parts of it the CA goes by.

use std::path::PathBuf;

use serde::Deserialize;

use crate::Error;

/// The cluster that the CA serves, and what it takes from there. Everything but [`ClusterConfig::kubeconfig`] is off
/// unless it is named.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// How the API server is reached; the service account of the CA's own pod if none is given.
    pub kubeconfig: Option<PathBuf>,
    /// Nodes attest by projected service account tokens (`k8s_psat`).
    pub nodes: Option<NodesConfig>,
    /// Pods get identities.
    pub workloads: Option<WorkloadsConfig>,
    /// Objects of these kinds become policies.
    pub policies: Vec<PolicyKind>,
    /// Who enforces them. Kinds of other projects are taken only if this says that handfast does.
    pub enforcer: Option<Enforcer>,
    /// The trust bundle is published for nodes that are to join.
    pub bundle: Option<BundleConfig>,
    /// Which of several CA servers reconciles.
    pub lease: LeaseConfig,
}

/// The ConfigMap with the trust bundle, under `bundle.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleConfig {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Whose tokens make which nodes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodesConfig {
    /// Tokens must have been made for this audience.
    pub audience: String,
    /// `NAMESPACE/NAME` of the agents' service accounts.
    pub service_accounts: Vec<String>,
    /// Where nodes' prefixes come from; always within the CA's own ranges.
    #[serde(default)]
    pub prefixes: PrefixSource,
    /// A node that is new starts as joining instead of managed.
    #[serde(default)]
    pub joining: bool,
}

/// Where the prefixes of a node come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PrefixSource {
    /// `spec.podCIDRs` of its Node.
    #[default]
    PodCidrs,
    /// `spec.ipam.podCIDRs` of its CiliumNode.
    CiliumNodes,
    /// A file (YAML) of nodes' names with their prefixes, read at each attestation.
    File {
        /// Where it is.
        path: PathBuf,
    },
}

/// Which labels are signed.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkloadsConfig {
    /// Keys of pods' labels that are not signed, since only a rollout or a single pod changes them.
    pub leave_out: Vec<String>,
}

impl Default for WorkloadsConfig {
    fn default() -> Self {
        let keys = [
            "pod-template-hash",
            "controller-revision-hash",
            "pod-template-generation",
            "controller-uid",
            "batch.kubernetes.io/controller-uid",
            "batch.kubernetes.io/job-completion-index",
            "statefulset.kubernetes.io/pod-name",
            "apps.kubernetes.io/pod-index",
        ];
        Self {
            leave_out: keys.map(str::to_owned).to_vec(),
        }
    }
}

/// Who enforces policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enforcer {
    /// We alone: nobody else in the cluster enforces the kinds that are named.
    Handfast,
}

impl ClusterConfig {
    /// A policy must not have two enforcers by accident: what a CNI may enforce too is taken only on somebody's word.
    ///
    /// # Errors
    /// A kind of another project is named, and nobody says that handfast is its enforcer.
    pub fn one_enforcer(&self) -> Result<(), Error> {
        let foreign = self
            .policies
            .iter()
            .find(|kind| **kind != PolicyKind::HandfastPolicy);
        match (foreign, self.enforcer) {
            (Some(kind), None) => Err(Error::invalid(
                "policies",
                format!(
                    "{kind:?} is what a CNI may enforce too, and a policy with two enforcers means what neither says: \
                     write \"enforcer: handfast\" if no CNI enforces it here, or take {kind:?} out"
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// A kind of object that becomes policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub enum PolicyKind {
    /// `handfast.io/v1alpha1`, ours.
    HandfastPolicy,
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `cilium.io/v2`, of a namespace.
    CiliumNetworkPolicy,
    /// `cilium.io/v2`, of the cluster.
    CiliumClusterwideNetworkPolicy,
}

/// The Lease that the reconciling server holds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaseConfig {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            namespace: "handfast-system".to_owned(),
            name: "handfast-ca".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cni_may_enforce_too_is_taken_on_somebodys_word_alone() {
        let read = |text: &str| -> ClusterConfig { serde_norway::from_str(text).unwrap() };
        assert!(read("policies: [HandfastPolicy]").one_enforcer().is_ok());
        for kind in [
            "NetworkPolicy",
            "CiliumNetworkPolicy",
            "CiliumClusterwideNetworkPolicy",
        ] {
            let config = read(&format!("policies: [HandfastPolicy, {kind}]"));
            let refused = config.one_enforcer().unwrap_err().to_string();
            assert!(refused.contains(kind), "{refused}");
            let meant = read(&format!("policies: [{kind}]\nenforcer: handfast"));
            assert!(meant.one_enforcer().is_ok());
        }
    }
}
