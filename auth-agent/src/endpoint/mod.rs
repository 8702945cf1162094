//! Endpoints: workload interfaces attached to this node, and the records that make them survive the agent.
//!
//! An endpoint's number is its identity on this node: it is never reused in a boot, and the gates carry it from
//! the moment they are attached, because the kernel reuses interface indexes at once.

mod link;
mod namespace;
mod records;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cni::Pod;

pub use link::{Attached, LinkRequest, attach, interfaces, open, remove};
pub use namespace::{NamespaceName, exists as namespace_exists, within};
pub use records::{EndpointRecords, RecordError};

/// A number for one attached workload interface, unique for one boot of this node.
pub type EndpointId = u32;

/// One attached workload, as it is remembered in the run directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Unique for this boot.
    pub id: EndpointId,
    /// What people call it; the namespace's name unless told otherwise.
    pub name: String,
    /// The workload's network namespace, under `/run/netns`.
    pub netns: NamespaceName,
    /// The namespace's inode: a namespace made anew under the same name is another one.
    pub netns_inode: u64,
    /// What it was labelled with when it was attached; entries may select by it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The pod of Kubernetes that it is, if it is one.
    #[serde(default)]
    pub pod: Option<Pod>,
    /// The workload's addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's side of the workload's link.
    pub interface: String,
    /// The kernel's index of `interface`.
    pub ifindex: u32,
    /// The hardware address of the workload's side.
    pub mac: [u8; 6],
    /// The hardware address of the node's side.
    pub host_mac: [u8; 6],
    /// True where handfast made the link, and so takes it away.
    pub created: bool,
}

/// What can go wrong when a workload is attached.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The name cannot be a network namespace's.
    #[error(
        "{0:?} is not a name of a network namespace: 1 to 200 characters, no slash, not '.' or '..'"
    )]
    BadName(String),
    /// There is no such namespace.
    #[error(
        "network namespace {0} does not exist (nothing under /run/netns); make it with: ip netns add {0}"
    )]
    NoNamespace(String),
    /// The namespace has no link to this node and no address was given to make one.
    #[error(
        "network namespace {0} has no link to this node, and no --address was given to make one; nothing was changed"
    )]
    NoLink(String),
    /// The namespace's link has no address.
    #[error(
        "interface {interface} of network namespace {netns} has no address that could be announced; \
         give it one, then add the endpoint again"
    )]
    NoAddress {
        /// The namespace.
        netns: String,
        /// Its interface.
        interface: String,
    },
    /// The namespace's link has other addresses than were asked for.
    #[error(
        "network namespace {netns} is linked already, with other addresses than asked for ({found:?})"
    )]
    OtherAddresses {
        /// The namespace.
        netns: String,
        /// What its interface has.
        found: Vec<IpAddr>,
    },
    /// The system refused.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The kernel refused a change of links, addresses or routes.
    #[error("{doing}: {source}")]
    Netlink {
        /// What was being done.
        doing: &'static str,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
}
