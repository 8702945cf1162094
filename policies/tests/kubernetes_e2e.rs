//! Kubernetes' own end-to-end scenarios for NetworkPolicy on the entries that the gates are given.
//!
//! The agent's tests put the same scenarios to the gates themselves, packet by packet.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "netpol/cluster.rs"]
mod cluster;
#[path = "netpol/scenarios.rs"]
mod scenarios;

use std::net::IpAddr;

use handfast_policies::{
    Direction::{Egress, Ingress},
    PolicySet, Protocol, Remote, Source,
};

use cluster::{Pods, Way};

/// What the set says of both ends of a flow.
struct Judge {
    pods: Pods,
    set: PolicySet,
}

impl Judge {
    fn new(pods: &Pods) -> Option<Self> {
        Some(Self {
            pods: pods.clone(),
            set: PolicySet::default(),
        })
    }

    fn learn(&mut self, pods: &Pods, policies: Vec<Source>) {
        self.pods = pods.clone();
        self.set = self
            .set
            .updated(policies)
            .unwrap_or_else(|errors| panic!("{errors:#?}"));
    }

    fn ways(&mut self, from: &str, to: &str, protocol: Protocol, port: u16) -> Vec<Way> {
        let (sender, receiver) = (&self.pods[from], &self.pods[to]);
        let sent = self.set.of_workload(sender).ruling(
            &Remote::Workload(receiver.clone()),
            Egress,
            protocol,
            port,
        );
        let received = self.set.of_workload(receiver).ruling(
            &Remote::Workload(sender.clone()),
            Ingress,
            protocol,
            port,
        );
        vec![Way {
            told: format!("{sent:?} {received:?}"),
            passes: sent.is_allowed() && received.is_allowed(),
        }]
    }

    fn outside(&mut self, from: &str, to: IpAddr, port: u16) -> Way {
        let remote = self.set.outside(to);
        let policy = self.set.of_workload(&self.pods[from]);
        let ruling = policy.ruling(&remote, Egress, Protocol::Tcp, port);
        Way {
            told: format!("{ruling:?}"),
            passes: ruling.is_allowed(),
        }
    }
}
