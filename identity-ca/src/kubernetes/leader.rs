//! Which of several CA servers reconciles: the one that holds the Lease.
//!
//! Two that reconcile for a moment would want the same, and every change is a transaction: the Lease spares work, the
//! registry does not depend on it. So a clock that stands still for a while does no harm here.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use super::api;
use super::config::LeaseConfig;
use crate::Error;

/// A holder that has not been heard for so long has lost it.
const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for so long gives up by itself.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
/// One request.
const PATIENCE: Duration = Duration::from_secs(5);

/// One contender.
pub(super) struct Leader {
    leases: Api<Lease>,
    name: String,
    identity: String,
    /// The Lease as it was seen last, and when by our own clock: clocks of others are not asked.
    seen: Option<(Option<String>, Instant)>,
}

impl Leader {
    pub(super) fn new(client: Client, config: &LeaseConfig, identity: String) -> Self {
        Self {
            leases: Api::namespaced(client, &config.namespace),
            name: config.name.clone(),
            identity,
            seen: None,
        }
    }

    /// Does `work` whenever the Lease is ours, and drops it when it no longer is. Never ends.
    pub(super) async fn lead<F: Future<Output = ()>>(&mut self, work: impl Fn() -> F) {
        loop {
            self.acquire().await;
            tracing::info!(lease = self.name, "this server reconciles the cluster");
            tokio::select! {
                () = work() => {}
                () = self.hold() => {}
            }
            tracing::warn!(
                lease = self.name,
                "this server no longer reconciles the cluster"
            );
        }
    }

    /// Gives the Lease up, so that another server need not wait for its end.
    pub(super) async fn release(&mut self) {
        let released = async {
            let lease = self
                .leases
                .get_opt(&self.name)
                .await
                .map_err(api("get the Lease"))?;
            match lease {
                Some(lease) if self.is_ours(&lease) => self.write(lease, None).await.map(|_| ()),
                _ => Ok(()),
            }
        };
        match tokio::time::timeout(Duration::from_secs(1), released).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(%error, "the Lease was not given up; it runs out"),
            Err(_) => tracing::info!("the Lease was not given up in time; it runs out"),
        }
    }

    async fn acquire(&mut self) {
        loop {
            match self.bounded_try().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "cannot take the Lease; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Returns when the Lease is lost.
    async fn hold(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < RENEW_WITHIN {
            tokio::time::sleep(RETRY).await;
            match self.bounded_try().await {
                Ok(true) => renewed = Instant::now(),
                Ok(false) => return,
                Err(error) => tracing::warn!(%error, "cannot renew the Lease; trying again"),
            }
        }
    }

    async fn bounded_try(&mut self) -> Result<bool, Error> {
        let tried = tokio::time::timeout(PATIENCE, self.try_once()).await;
        tried.unwrap_or_else(|_| {
            Err(Error::Cluster {
                doing: "take the Lease",
                problem: format!("no answer within {} s", PATIENCE.as_secs()),
            })
        })
    }

    /// Takes or renews it, if nobody else holds it.
    async fn try_once(&mut self) -> Result<bool, Error> {
        let Some(lease) = self
            .leases
            .get_opt(&self.name)
            .await
            .map_err(api("get the Lease"))?
        else {
            let made = self
                .leases
                .create(&PostParams::default(), &self.fresh())
                .await;
            return won(made);
        };
        let version = lease.metadata.resource_version.clone();
        let stands = match &self.seen {
            Some((seen, since)) if *seen == version => since.elapsed() < DURATION,
            _ => {
                self.seen = Some((version, Instant::now()));
                true
            }
        };
        let free = holder(&lease).is_none();
        if !free && !self.is_ours(&lease) && stands {
            return Ok(false);
        }
        self.write(lease, Some(self.identity.clone())).await
    }

    /// Writes it over what was read; false if somebody was faster.
    async fn write(&self, mut lease: Lease, who: Option<String>) -> Result<bool, Error> {
        let spec = lease.spec.get_or_insert_default();
        let now = MicroTime(Timestamp::now());
        if spec.holder_identity != who {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        spec.holder_identity = who;
        spec.renew_time = Some(now);
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        won(self
            .leases
            .replace(&self.name, &PostParams::default(), &lease)
            .await)
    }

    fn fresh(&self) -> Lease {
        let now = MicroTime(Timestamp::now());
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: Some(0),
                ..LeaseSpec::default()
            }),
        }
    }

    fn is_ours(&self, lease: &Lease) -> bool {
        holder(lease) == Some(&self.identity)
    }
}

fn holder(lease: &Lease) -> Option<&String> {
    let holder = lease.spec.as_ref()?.holder_identity.as_ref()?;
    Some(holder).filter(|holder| !holder.is_empty())
}

/// A conflict means that somebody else was faster.
fn won(written: kube::Result<Lease>) -> Result<bool, Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(api("write the Lease")(error)),
    }
}
