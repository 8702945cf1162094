//! Which two workloads a flow is between: one of them here, the other anywhere.

use std::net::IpAddr;

use super::super::RunError;
use super::super::agent::Agent;
use super::super::report::name;
use crate::core::{IdentityNumber, PeerNumber, PeerView};
use crate::endpoint::Endpoint;

/// A flow's ends, as this node sees them.
pub(super) struct Ends<'a> {
    /// The one on this node.
    pub(super) near: Endpoint,
    /// What the other is called.
    pub(super) far: &'a str,
    /// The near end opens the flow.
    pub(super) outward: bool,
}

/// The far end of a flow.
pub(super) struct Far {
    pub(super) address: IpAddr,
    pub(super) peer: PeerNumber,
    /// Absent while nobody has said who the address is.
    pub(super) identity: Option<IdentityNumber>,
}

/// A destination that is no address yet, and an address that can be asked about to learn more.
pub(super) struct Unresolved {
    pub(super) ask: Option<IpAddr>,
    pub(super) detail: String,
}

impl Agent {
    /// Either end may be on this node; of two that are, the source is looked at.
    pub(super) fn ends<'a>(&self, from: &'a str, to: &'a str) -> Result<Ends<'a>, RunError> {
        let (near, far, outward) = match (self.near(from), self.near(to)) {
            (Some(near), _) => (near, to, true),
            (None, Some(near)) => (near, from, false),
            (None, None) => {
                return Err(RunError::Refused(format!(
                    "neither {from} nor {to} is a workload of this node; handfast endpoint list shows what there is. \
                     Ask on the node of either"
                )));
            }
        };
        Ok(Ends { near, far, outward })
    }

    fn near(&self, name: &str) -> Option<Endpoint> {
        let address: Option<IpAddr> = name.parse().ok();
        let endpoints = self.endpoints.all();
        let named = endpoints.iter().find(|endpoint| {
            endpoint.name == name || address.is_some_and(|a| endpoint.addresses.contains(&a))
        });
        // The node's name stands for its only workload.
        let only = match endpoints {
            [only] if self.node.name.to_string() == name => Some(only),
            _ => None,
        };
        // So does a SPIFFE ID, or its last part, for the first workload that has it.
        let means = |endpoint: &&Endpoint| {
            self.identity_of(endpoint).is_some_and(|identity| {
                let id = identity.spiffe_id.as_str();
                id == name || id.rsplit('/').next() == Some(name)
            })
        };
        let known = || endpoints.iter().find(means);
        named.or(only).or_else(known).cloned()
    }

    pub(super) fn far(&self, to: &str) -> Result<Far, Unresolved> {
        let view = self.view();
        let remotes = || {
            view.peers.iter().flat_map(|peer| {
                let number = peer.number;
                peer.remotes
                    .iter()
                    .map(move |(address, identity)| (number, *address, *identity))
            })
        };
        if let Ok(address) = to.parse::<IpAddr>() {
            if let Some((peer, address, identity)) = remotes().find(|(_, a, _)| *a == address) {
                return Ok(Far {
                    address,
                    peer,
                    identity: Some(identity),
                });
            }
            let here = view
                .endpoints
                .iter()
                .find(|e| e.addresses.contains(&address));
            if let Some(endpoint) = here {
                return Ok(Far {
                    address,
                    peer: PeerNumber::LOCAL,
                    identity: endpoint.identity,
                });
            }
            let holder = view
                .peers
                .iter()
                .find(|peer| peer.prefixes.iter().any(|prefix| prefix.contains(&address)));
            return match holder {
                Some(peer) => Ok(Far {
                    address,
                    peer: peer.number,
                    identity: None,
                }),
                None => Err(Unresolved {
                    ask: None,
                    detail: format!("{address} lies in no node's prefixes: not a managed address"),
                }),
            };
        }
        let means = |identity: &IdentityNumber| {
            let id = name(&view, *identity);
            id == to || id.rsplit('/').next() == Some(to)
        };
        let mut named: Vec<Far> = remotes()
            .filter(|(_, _, identity)| means(identity))
            .map(|(peer, address, identity)| Far {
                address,
                peer,
                identity: Some(identity),
            })
            .collect();
        for endpoint in self.endpoints.all().iter().filter(|e| e.name == to) {
            let known = view
                .endpoints
                .iter()
                .find(|known| known.endpoint.0 == endpoint.id);
            if let (Some(known), Some(address)) = (known, endpoint.addresses.first()) {
                named.push(Far {
                    address: *address,
                    peer: PeerNumber::LOCAL,
                    identity: known.identity,
                });
            }
        }
        if named.is_empty()
            && let Some(peer) = view.peers.iter().find(|peer| peer.name == to)
        {
            return self.far_on_node(peer, to);
        }
        named.into_iter().next().ok_or_else(|| Unresolved {
            ask: None,
            detail: format!(
                "nothing that this node knows is called {to:?}; name an address, a SPIFFE ID or a node"
            ),
        })
    }

    /// A node's name stands for its workload, if it has announced but one identity here.
    fn far_on_node(&self, peer: &PeerView, to: &str) -> Result<Far, Unresolved> {
        let mut remotes = peer.remotes.iter();
        match (
            remotes.next(),
            remotes
                .clone()
                .all(|(_, id)| peer.remotes.first().map(|r| r.1) == Some(*id)),
        ) {
            (Some((address, identity)), true) => Ok(Far {
                address: *address,
                peer: peer.number,
                identity: Some(*identity),
            }),
            (Some(_), false) => Err(Unresolved {
                ask: None,
                detail: format!(
                    "node {to} has several workloads; name one by address or SPIFFE ID"
                ),
            }),
            (None, _) => Err(Unresolved {
                ask: peer.prefixes.first().map(|prefix| prefix.addr()),
                detail: format!(
                    "node {to} has announced no workload here that policy pairs with the source"
                ),
            }),
        }
    }
}
