//! Kubernetes: nodes that attest by tokens of their cluster, entries that follow its pods, policies that follow its
//! objects.
//!
//! Only the CA talks to the API server; agents need no access to it. What is read there is a claim like any other:
//! prefixes stay within the CA's ranges, labels within its bounds, and policies must be readable before any node
//! hears of them. While the API server is away nothing changes: what is registered stays.

mod bundle;
mod config;
mod cost;
mod entries;
mod leader;
mod listed;
mod news;
mod object;
mod policies;
mod prefixes;
mod psat;
mod share;
mod status;
mod watch;
mod workload;
mod world;

use std::sync::Arc;

use ipnet::IpNet;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::events::Reporter;
use kube::{Client, Config};

use self::leader::Leader;
use self::news::News;
use self::psat::K8sPsat;
use self::status::Statuses;
use crate::Error;
use crate::attest::Attestors;
use crate::server::Registrar;

/// Who reports events.
const CONTROLLER: &str = "handfast.io/ca";

pub use self::config::{
    BundleConfig, ClusterConfig, Enforcer, LeaseConfig, NodesConfig, PolicyKind, PrefixSource,
    WorkloadsConfig,
};
pub use self::policies::CheckPolicies;
pub(crate) use self::psat::{KIND as K8S_PSAT, MAX_TOKEN};

/// The cluster that a CA serves.
pub(crate) struct Cluster {
    config: ClusterConfig,
    client: Client,
    checker: Option<Arc<dyn CheckPolicies>>,
}

impl Cluster {
    /// Reads how the API server is reached. Nothing is asked yet: one that is away does not keep the CA from starting.
    pub(crate) async fn open(
        config: &ClusterConfig,
        checker: Option<Arc<dyn CheckPolicies>>,
    ) -> Result<Self, Error> {
        if checker.is_none() && !config.policies.is_empty() {
            return Err(Error::invalid(
                "Kubernetes policies",
                "nobody here can read them",
            ));
        }
        config.one_enforcer()?;
        Ok(Self {
            config: config.clone(),
            client: connect(config).await?,
            checker,
        })
    }

    /// The kinds of attestation, with the cluster's own if it is asked for.
    /// `ranges` are those that nodes' prefixes come from.
    pub(crate) fn attestors(
        &self,
        attestors: Attestors,
        ranges: &[IpNet],
    ) -> Result<Attestors, Error> {
        match &self.config.nodes {
            Some(nodes) => Ok(attestors.and(K8sPsat::open(nodes, self.client.clone(), ranges)?)),
            None => Ok(attestors),
        }
    }

    /// Keeps the registry as the cluster is, whenever this server is the one to do so, until told to stop.
    pub(crate) async fn keep(self, registrar: Registrar, stopped: impl Future<Output = ()>) {
        let Self {
            config,
            client,
            checker,
        } = self;
        if config.workloads.is_none() && config.policies.is_empty() && config.bundle.is_none() {
            return;
        }
        let identity = registrar.server().to_owned();
        let mut leader = Leader::new(client.clone(), &config.lease, identity.clone());
        let reporter = Reporter {
            controller: CONTROLLER.to_owned(),
            instance: Some(identity),
        };
        let news = News::new(client.clone(), reporter);
        let work = || async {
            let workloads = async {
                match &config.workloads {
                    Some(workloads) => {
                        entries::follow(&client, workloads, &registrar, &news).await;
                    }
                    None => std::future::pending().await,
                }
            };
            let policies = async {
                match &checker {
                    Some(checker) if !config.policies.is_empty() => {
                        let statuses = Statuses::new(client.clone(), news.clone());
                        policies::follow(&client, &config.policies, checker, &registrar, statuses)
                            .await;
                    }
                    _ => std::future::pending().await,
                }
            };
            let bundle = async {
                if let Some(place) = &config.bundle {
                    bundle::publish(&client, place, &registrar).await;
                }
            };
            tokio::join!(workloads, policies, bundle);
        };
        tokio::select! {
            () = leader.lead(work) => {}
            () = stopped => {}
        }
        leader.release().await;
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
