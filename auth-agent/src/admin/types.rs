//! The questions and answers, as both sides of the administrative socket see them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cni::CniRequest;
use crate::endpoint::{Exempt, Group, NamespaceName};

/// What the command line asks of a running agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// How is this node? Answer: [`Status`].
    Status,
    /// Attach a workload. Answer: [`EndpointInfo`].
    EndpointAdd {
        /// What to call it; the namespace's name where absent.
        name: Option<String>,
        /// Its network namespace; none for a workload of the node itself.
        netns: Option<NamespaceName>,
        /// Which sockets are it, for a workload of the node itself.
        #[serde(default)]
        group: Option<Group>,
        /// Its ports that policy does not close, for a workload of the node itself.
        #[serde(default)]
        exempt: Vec<Exempt>,
        /// Labels that entries may select it by.
        #[serde(default)]
        labels: BTreeMap<String, String>,
        /// Its addresses, where handfast makes the link.
        addresses: Vec<IpAddr>,
    },
    /// Detach a workload. Answer: [`EndpointInfo`], as it was.
    EndpointRemove {
        /// Its name.
        name: String,
    },
    /// All endpoints. Answer: a list of [`EndpointInfo`].
    EndpointList,
    /// All proven pairs. Answer: lists of [`PairDetail`], one after another, the last of them empty.
    PairList,
    /// Forget pairs, so that they must be proven again. Answer: the number forgotten.
    PairFlush,
    /// The SVIDs of this node and its workloads. Answer: a list of [`SvidInfo`].
    SvidList,
    /// Sessions and tunnels. Answer: a list of [`PeerInfo`](super::PeerInfo).
    TunnelStatus,
    /// Change this node's tunnel keys. Answer: [`RotationInfo`](super::RotationInfo).
    TunnelRotate,
    /// Send probes and look at the wire. Answer: a list of [`WireInfo`](super::WireInfo).
    TunnelVerify {
        /// Only this one: a name or SPIFFE ID.
        peer: Option<String>,
    },
    /// A request of the CNI plugin; its answer stands there.
    Cni(CniRequest),
    /// The policies in force. Answer: [`PolicyInfo`].
    Policies,
    /// Verdicts as they happen. Answer: [`Observed`] lines without end.
    Observe(ObserveFilter),
    /// What would happen to a flow. Answer: [`VerifyReport`].
    Verify {
        /// A local endpoint's name or address.
        from: String,
        /// A remote endpoint's address, name or SPIFFE ID.
        to: String,
        /// The destination port.
        port: u16,
        /// `tcp`, `udp`, `sctp`, `icmp`.
        protocol: String,
    },
    /// Take every program, rule and device of ours away and stop. Answer: the list of what was removed.
    Detach,
}

/// The node at a glance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The node's SPIFFE ID.
    pub node: String,
    /// The node's name.
    pub name: String,
    /// This program's version.
    pub version: String,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// When the node's SVID ends, seconds since 1970.
    pub node_svid_expires: u64,
    /// True while the stream from the CA is open.
    pub ca_connected: bool,
    /// The CA's last update that was applied.
    pub ca_sequence: u64,
    /// Where the CA listens.
    pub ca_address: String,
    /// Number of the trust bundle in force.
    #[serde(default)]
    pub bundle_sequence: u64,
    /// Issuing CAs (SHA-256 of their certificates) and JWT keys that SVIDs here hang on.
    #[serde(default)]
    pub authorities_in_use: Vec<String>,
    /// When the first SVID of any kind ends, seconds since 1970.
    #[serde(default)]
    pub nearest_expiry: u64,
    /// SVIDs that are held for workloads.
    #[serde(default)]
    pub workload_svids: usize,
    /// Workloads' open streams.
    #[serde(default)]
    pub workload_streams: usize,
    /// `kernel` or the name of the userspace program.
    pub tunnel: String,
    /// The key exchange that sessions use.
    pub key_exchange: String,
    /// Attached workloads.
    pub endpoints: usize,
    /// Peers with a live session.
    pub sessions: usize,
    /// Pairs that were proven since the agent started; after a restart, all that are recorded a moment later.
    pub pairs: usize,
    /// The policy version in force.
    pub policy_version: u64,
    /// Why the newest policies are not in force, if they are not.
    pub policy_error: Option<String>,
    /// The deny list in force.
    pub deny_number: u64,
    /// Counters by name: `packets: REASON` of the gates, `protocol: EVENT` of sessions, refused handshakes.
    pub counters: BTreeMap<String, u64>,
    /// What happened within the last hour, deserves attention and is not known to be over, newest last.
    pub alarms: Vec<AlarmInfo>,
}

/// Something that deserves attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlarmInfo {
    /// When it was last said, seconds since 1970.
    pub at: u64,
    /// What.
    pub text: String,
}

/// One attached workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// Its number, unique for this boot.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its network namespace; absent for a workload of the node itself.
    pub netns: Option<String>,
    /// The path of its control group, for a workload of the node itself.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// Its ports that policy does not close.
    #[serde(default)]
    pub exempt: Vec<Exempt>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's side of its link.
    pub interface: String,
    /// Its identity; absent while no entry's selectors match it.
    pub spiffe_id: Option<String>,
    /// Its labels, as the CA signed them.
    pub labels: BTreeMap<String, String>,
    /// Peers that have confirmed its addresses.
    pub announced_to: Vec<String>,
}

/// One proven pair.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PairInfo {
    /// The identity on this node.
    pub local: String,
    /// The identity on the peer.
    pub remote: String,
    /// The peer's name, or `local`.
    pub peer: String,
    /// The session's epoch on this node.
    pub epoch: u32,
    /// Seconds until it must be proven anew.
    pub expires_in_s: u64,
}

/// One proven pair, and what it is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PairDetail {
    /// Between whom, and until when.
    #[serde(flatten)]
    pub pair: PairInfo,
    /// The local identity's proof, where it is known.
    pub local_proof: Option<ProofInfo>,
    /// The remote one's.
    pub remote_proof: Option<ProofInfo>,
    /// The rules, of either end, that ask for it: policy, field, file and line. None where it is proven ahead and not
    /// required.
    pub rules: Vec<String>,
}

/// A proof SVID that was shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProofInfo {
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// Seconds until no proof of its identity counts any more.
    pub expires_in_s: u64,
}

/// One SVID.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SvidInfo {
    /// Whose.
    pub spiffe_id: String,
    /// `node`, `proof` or `workload`.
    pub kind: String,
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// Seconds since 1970.
    pub not_after: u64,
}

/// The policies in force on this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// The version.
    pub version: u64,
    /// The documents' kinds and names.
    pub documents: Vec<String>,
    /// Why a newer version is not in force.
    pub error: Option<String>,
}

/// Which verdicts to show.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ObserveFilter {
    /// Only flows whose source's address, name or SPIFFE ID contains this.
    pub from: Option<String>,
    /// Only flows whose destination's address, name or SPIFFE ID contains this.
    pub to: Option<String>,
    /// Only this verdict: `forwarded`, `dropped`, `audit`, `held`.
    pub verdict: Option<String>,
    /// Go on as events happen; otherwise end after what is remembered.
    pub follow: bool,
}

/// A flow's addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port; 0 where the protocol has none.
    pub destination_port: u16,
    /// `tcp`, `udp`, `icmp`, … or a number.
    pub protocol: String,
}

/// One verdict.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Observed {
    /// Seconds since 1970, with fraction.
    pub time: f64,
    /// `forwarded`, `dropped`, `audit`, `held`.
    pub verdict: String,
    /// Why: the drop reason, or what a held packet waits for.
    pub reason: String,
    /// The gate that decided.
    pub gate: String,
    /// `ingress` or `egress`, as the local endpoint sees it.
    pub direction: String,
    /// The flow.
    #[serde(flatten)]
    pub tuple: Tuple,
    /// The source's identity, where it is known.
    pub from: Option<String>,
    /// The destination's identity, where it is known.
    pub to: Option<String>,
    /// The policy rule that decided, where one did.
    pub rule: Option<String>,
}

/// One line of `handfast verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyCheck {
    /// What was looked at.
    pub what: String,
    /// How it stands.
    pub state: VerifyState,
    /// The fact behind it.
    pub detail: String,
}

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyState {
    /// As it must be.
    Ok,
    /// Not as it must be: the flow does not pass.
    Missing,
    /// Cannot be seen from here.
    Unknown,
}

/// What would happen to a flow, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerifyReport {
    /// True only if every check is ok.
    pub ok: bool,
    /// The flow in words.
    pub flow: String,
    /// Every link of the chain.
    pub checks: Vec<VerifyCheck>,
}
