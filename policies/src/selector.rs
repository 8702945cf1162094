//! Who is meant: label selectors, prefixes, SPIFFE ID patterns.

use std::collections::BTreeSet;

use ipnet::IpNet;
use spiffe::SpiffeId;

use crate::entry::{Remote, Workload};

/// Workloads by their labels; one without requirements selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) requirements: Vec<Requirement>,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Requirement {
    pub(crate) key: String,
    pub(crate) is: Condition,
}

/// What is required of a label; `NotIn` holds for an absent one, as in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    Absent,
}

impl Selector {
    pub(crate) fn matches(&self, workload: &Workload) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = workload.labels.get(&requirement.key);
            match &requirement.is {
                Condition::In(values) => value.is_some_and(|value| values.contains(value)),
                Condition::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Condition::Exists => value.is_some(),
                Condition::Absent => value.is_none(),
            }
        })
    }
}

/// The far ends that a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peers {
    /// Everything.
    Any,
    /// Any of these; an empty list is nobody.
    Of(Vec<Peer>),
}

/// Some far ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Workloads of the home trust domain.
    Workloads(Selector),
    /// The node itself.
    Host,
    /// Every unmanaged address.
    World,
    /// Unmanaged addresses.
    Block(Block),
}

/// A prefix without some prefixes inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) net: IpNet,
    pub(crate) except: Vec<IpNet>,
}

impl Peers {
    /// Every prefix that is named, exceptions included.
    pub(crate) fn cidrs(&self) -> impl Iterator<Item = IpNet> {
        let peers = match self {
            Self::Of(peers) => peers.as_slice(),
            Self::Any => &[],
        };
        let blocks = peers.iter().filter_map(|peer| match peer {
            Peer::Block(block) => Some(block),
            _ => None,
        });
        blocks.flat_map(|block| std::iter::once(block.net).chain(block.except.iter().copied()))
    }

    /// Whether another workload is among them, seen from `local`.
    pub(crate) fn select(&self, local: &Workload, other: &Workload) -> bool {
        match self {
            Self::Any => true,
            Self::Of(peers) => peers.iter().any(|peer| peer.selects(local, other)),
        }
    }

    /// Whether `remote` is among them, seen from `local`.
    ///
    /// Labels of a foreign trust domain mean nothing here, so no selector matches them.
    pub(crate) fn matches(&self, local: &Workload, remote: &Remote) -> bool {
        match self {
            Self::Any => true,
            Self::Of(peers) => peers.iter().any(|peer| peer.matches(local, remote)),
        }
    }
}

impl Peer {
    fn selects(&self, local: &Workload, other: &Workload) -> bool {
        let Self::Workloads(selector) = self else {
            return false;
        };
        let home = local.spiffe_id.trust_domain();
        selector.matches(other) && other.spiffe_id.is_member_of(home)
    }

    fn matches(&self, local: &Workload, remote: &Remote) -> bool {
        match (self, remote) {
            (_, Remote::Workload(workload)) => self.selects(local, workload),
            (Self::World, Remote::World | Remote::Cidr(_)) | (Self::Host, Remote::Host) => true,
            (Self::Block(block), Remote::Cidr(net)) => block.contains(net),
            _ => false,
        }
    }
}

impl Block {
    fn contains(&self, net: &IpNet) -> bool {
        self.net.contains(net) && !self.except.iter().any(|except| except.contains(net))
    }
}

/// SPIFFE IDs by pattern: `*` stands for one path segment, `**` at the end for one or more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdPattern {
    trust_domain: String,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Exactly(String),
    One,
    Rest,
}

impl IdPattern {
    /// Parses a pattern, or says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix("spiffe://") else {
            return Err("it does not begin with spiffe://".to_owned());
        };
        let Some((trust_domain, path)) = rest.split_once('/') else {
            return Err("names no path: add /** for every ID of the trust domain".to_owned());
        };
        // A wildcard stands for a segment: with a letter for each, a pattern must be an ID.
        let plain: Vec<_> = path
            .split('/')
            .map(|segment| {
                if matches!(segment, "*" | "**") {
                    "x"
                } else {
                    segment
                }
            })
            .collect();
        if plain.iter().any(|segment| segment.contains('*')) {
            return Err("* and ** stand for whole path segments only".to_owned());
        }
        let example = SpiffeId::new(format!("spiffe://{trust_domain}/{}", plain.join("/")))
            .map_err(|error| error.to_string())?;
        let segments: Vec<_> = path.split('/').map(Segment::parse).collect();
        let early = segments
            .iter()
            .rev()
            .skip(1)
            .any(|s| matches!(s, Segment::Rest));
        if early {
            return Err("** may only be the last segment".to_owned());
        }
        Ok(Self {
            trust_domain: example.trust_domain_name().to_owned(),
            segments,
        })
    }

    pub(crate) fn matches(&self, id: &SpiffeId) -> bool {
        let mut actual = id.path().split('/').skip(1);
        if id.trust_domain_name() != self.trust_domain {
            return false;
        }
        for segment in &self.segments {
            let Some(found) = actual.next() else {
                return false;
            };
            match segment {
                Segment::Exactly(text) if text != found => return false,
                Segment::Exactly(_) | Segment::One => {}
                Segment::Rest => return true,
            }
        }
        actual.next().is_none()
    }
}

impl Segment {
    fn parse(text: &str) -> Self {
        match text {
            "*" => Self::One,
            "**" => Self::Rest,
            _ => Self::Exactly(text.to_owned()),
        }
    }
}
