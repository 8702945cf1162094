//! Kubernetes: nodes that attest by tokens of their cluster, entries that follow its pods, policies that follow its
//! objects.
//!
//! Only the CA talks to the API server; agents need no access to it. What is read there is a claim like any other:
//! prefixes stay within the CA's ranges, labels within its bounds, and policies must be readable before any node
//! hears of them. While the API server is away nothing changes: what is registered stays.

mod config;
mod prefixes;
mod psat;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use self::psat::K8sPsat;
use crate::Error;
use crate::attest::Attestors;

pub use self::config::{
    ClusterConfig, LeaseConfig, NodesConfig, PolicyKind, PrefixSource, WorkloadsConfig,
};
pub(crate) use self::psat::{KIND as K8S_PSAT, MAX_TOKEN};

/// The cluster that a CA serves.
pub(crate) struct Cluster {
    config: ClusterConfig,
    client: Client,
}

impl Cluster {
    /// Reads how the API server is reached. Nothing is asked yet: one that is away does not keep the CA from starting.
    pub(crate) async fn open(config: &ClusterConfig) -> Result<Self, Error> {
        Ok(Self {
            config: config.clone(),
            client: connect(config).await?,
        })
    }

    /// The kinds of attestation, with the cluster's own if it is asked for.
    pub(crate) fn attestors(&self, attestors: Attestors) -> Result<Attestors, Error> {
        match &self.config.nodes {
            Some(nodes) => Ok(attestors.and(K8sPsat::open(nodes, self.client.clone())?)),
            None => Ok(attestors),
        }
    }
}

async fn connect(config: &ClusterConfig) -> Result<Client, Error> {
    let bad = |what: String, problem: String| Error::invalid(what, problem);
    let client = match &config.kubeconfig {
        Some(path) => {
            let what = || path.display().to_string();
            let read =
                Kubeconfig::read_from(path).map_err(|error| bad(what(), error.to_string()))?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .map_err(|error| bad(what(), error.to_string()))?
        }
        None => Config::incluster().map_err(|error| {
            bad(
                "Kubernetes".to_owned(),
                format!("{error}; outside of a cluster, name a kubeconfig"),
            )
        })?,
    };
    Client::try_from(client).map_err(|error| bad("Kubernetes".to_owned(), error.to_string()))
}

/// What the API server said, or that it said nothing.
pub(crate) fn api(doing: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |error| match error {
        kube::Error::Api(status) => Error::Cluster {
            doing,
            problem: status.message,
        },
        other => Error::Cluster {
            doing,
            problem: chain(&other),
        },
    }
}

/// An error with what it hangs on, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}
