//! The words of the language, as plain values that cannot be wrong.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which way a flow is opened, seen from the selected workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Toward the workload.
    Ingress,
    /// From the workload.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// An IP protocol that rules can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Every protocol, those without ports included.
    Any,
    /// TCP, 6.
    Tcp,
    /// UDP, 17.
    Udp,
    /// SCTP, 132.
    Sctp,
    /// ICMP, 1; the message's type stands where others have the port.
    Icmp,
    /// ICMPv6, 58; the same.
    Icmpv6,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
            Self::Icmpv6 => "icmpv6",
        })
    }
}

impl Protocol {
    /// All that tell flows apart; what no rule names is [`Protocol::Any`].
    pub const ALL: [Self; 6] = [
        Self::Any,
        Self::Tcp,
        Self::Udp,
        Self::Sctp,
        Self::Icmp,
        Self::Icmpv6,
    ];

    /// The number in the IP header; `None` for any (IANA protocol numbers).
    #[must_use]
    pub fn number(self) -> Option<u8> {
        match self {
            Self::Any => None,
            Self::Tcp => Some(6),
            Self::Udp => Some(17),
            Self::Sctp => Some(132),
            Self::Icmp => Some(1),
            Self::Icmpv6 => Some(58),
        }
    }
}

/// What happens to a flow that an entry covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passes, subject to authentication and encryption.
    Allow,
    /// It is dropped, whatever other rules allow.
    Deny,
}

/// How a rule wants the identities of both ends proven.
///
/// Ordered by strength; of two rules that say it for the same traffic the stronger holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Authentication {
    /// Passes without a proof.
    Disabled,
    /// Passes without a proof, and counts what `Required` would have dropped.
    Audit,
    /// Passes only with a pair of proofs.
    Required,
    /// Never passes: for testing how a drop is seen.
    TestAlwaysFail,
}

/// Whether traffic between managed addresses must go through a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// May go in cleartext.
    Disabled,
    /// Only through a tunnel.
    Required,
}

/// The kinds of document that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `handfast.io/v1alpha1`, ours.
    HandfastPolicy,
    /// `cilium.io/v2`.
    CiliumNetworkPolicy,
    /// `cilium.io/v2`, without a namespace.
    CiliumClusterwideNetworkPolicy,
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HandfastPolicy => "HandfastPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
        })
    }
}

/// A rule of a [`crate::PolicySet`] by number, from 1; 0 is no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuleRef(pub u32);

/// Where a rule stands, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleInfo {
    /// The document's kind.
    pub kind: Kind,
    /// The document's namespace, if it has one.
    pub namespace: Option<String>,
    /// The document's name.
    pub policy: String,
    /// The field path in the document, such as `spec.ingress[0]`.
    pub field: String,
    /// The name of the source it was read from.
    pub file: String,
    /// The line in that source, from 1.
    pub line: usize,
    /// The direction it speaks of.
    pub direction: Direction,
    /// Whether it allows or denies.
    pub verdict: Verdict,
    /// What it says about authentication.
    pub authentication: Option<Authentication>,
    /// Whether nobody wrote it: the language has it by itself.
    #[serde(skip)]
    pub is_implied: bool,
}

impl fmt::Display for RuleInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        write!(
            f,
            "{} {} ({}:{})",
            self.policy, self.field, self.file, self.line
        )
    }
}

/// One document of a set, in brief.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyInfo {
    /// The document's kind.
    pub kind: Kind,
    /// The document's namespace, if it has one.
    pub namespace: Option<String>,
    /// The document's name.
    pub name: String,
    /// How many rules it has for traffic toward the workloads it selects.
    pub ingress: usize,
    /// How many rules it has for traffic from the workloads it selects.
    pub egress: usize,
    /// The name of the source it was read from.
    pub file: String,
    /// The line where it begins, from 1.
    pub line: usize,
}
