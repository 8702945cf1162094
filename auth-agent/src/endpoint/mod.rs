//! Endpoints: workload interfaces attached to this node, and the records that make them survive the agent.
//!
//! An endpoint's number is its identity on this node: it is never reused in a boot, and the gates carry it from
//! the moment they are attached, because the kernel reuses interface indexes at once.

mod host;
mod link;
mod namespace;
mod records;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cni::Pod;

pub use host::{
    Exempt, Found, Group, Host, LOOPBACK, MAX_EXEMPT, displace, hierarchy, holder, place,
};
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
    /// The workload's network namespace, under `/run/netns`; none for one of the node itself.
    #[serde(default)]
    pub netns: Option<NamespaceName>,
    /// The namespace's inode: a namespace made anew under the same name is another one. 0 without a namespace.
    pub netns_inode: u64,
    /// Where it is, for a workload of the node itself.
    #[serde(default)]
    pub host: Option<Host>,
    /// What it was labelled with when it was attached; entries may select by it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The pod of Kubernetes that it is, if it is one.
    #[serde(default)]
    pub pod: Option<Pod>,
    /// The workload's addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's side of the workload's link; the loopback interface for one of the node itself.
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
        "network namespace {0} does not exist (nothing under /run/netns); make it with: ip netns add {0}; nothing was \
         changed"
    )]
    NoNamespace(String),
    /// The namespace has no link to this node and no address was given to make one.
    #[error(
        "network namespace {0} has no link to this node, and no --address was given to make one; nothing was changed"
    )]
    NoLink(String),
    /// The namespace's link is of a kind that gates cannot stand on.
    #[error(
        "network namespace {netns} is linked by {interface}, a netkit device: its own programs hand packets on before the hooks \
         that gates are on. Give the workload a veth pair (Cilium: bpf.datapathMode=veth); nothing was changed"
    )]
    Netkit {
        /// The namespace.
        netns: String,
        /// Its device.
        interface: String,
    },
    /// There is no control group of version 2.
    #[error(
        "the unified control groups (version 2) are not mounted, by which sockets of this machine are told apart: \
         mount -t cgroup2 none /sys/fs/cgroup; nothing was changed"
    )]
    NoHierarchy,
    /// Not below the root of control groups.
    #[error(
        "{group} does not lie below {root}, where the unified control groups are mounted; nothing was changed"
    )]
    NoGroup {
        /// What was asked for.
        group: String,
        /// Where groups are.
        root: std::path::PathBuf,
    },
    /// No unit of that name runs.
    #[error(
        "no unit {0} runs now (systemctl status {0}): a unit has a control group only while it runs. Start it, or add the \
         endpoint in its ExecStartPre; nothing was changed"
    )]
    NoUnit(String),
    /// Several do.
    #[error(
        "several units are called {unit} ({folders:?}); name one of these with --cgroup; nothing was changed"
    )]
    SeveralUnits {
        /// The name.
        unit: String,
        /// Their groups.
        folders: Vec<std::path::PathBuf>,
    },
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
        "network namespace {netns} is linked already, with other addresses than asked for ({found:?}): leave --address out to take \
         those; nothing was changed"
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
