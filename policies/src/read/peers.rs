//! The far ends of a rule: selectors, entities or prefixes.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::read::cursor::{Cursor, Fields};
use crate::read::selector::{self, Scope};
use crate::read::shape::{Item, Schema, Shape, field};
use crate::selector::{Block, Peer, Peers, Selector};

pub(crate) static BLOCK: Schema = Schema {
    about: "A prefix without some prefixes inside it.",
    known: &[
        field("cidr", Shape::Text, "The prefix, such as 10.0.0.0/8.").required(),
        field(
            "except",
            Shape::List(Item::Text, 0, usize::MAX),
            "Prefixes inside it that are not meant.",
        ),
    ],
    refused: &[
        ("cidrGroupRef", "write the prefixes out, each with cidr"),
        (
            "cidrGroupSelector",
            "write the prefixes out, each with cidr",
        ),
    ],
};

/// The entities that are told apart.
pub(crate) const ENTITIES: &[&str] = &[
    "all",
    "none",
    "world",
    "world-ipv4",
    "world-ipv6",
    "host",
    "cluster",
];

/// Entities of Cilium's that are not.
const OTHER_ENTITIES: &[(&str, &str)] = &[
    ("remote-node", "write the other nodes' addresses as CIDRs"),
    (
        "kube-apiserver",
        "write the API servers' addresses as CIDRs",
    ),
    (
        "ingress",
        "there is no proxy of its own: select the gateway's workloads by their labels",
    ),
    (
        "health",
        "there are no health endpoints: agents test each other on their sessions; remove it",
    ),
    (
        "init",
        "a workload without an identity gets no flow that needs one: remove it",
    ),
    (
        "unmanaged",
        "an address outside the mesh is of the world: write world, or the addresses as CIDRs",
    ),
];

/// The names of the fields that say who, in one direction.
pub(crate) struct Names {
    pub(crate) endpoints: &'static str,
    pub(crate) entities: &'static str,
    pub(crate) cidr: &'static str,
    pub(crate) cidr_set: &'static str,
}

/// Who a rule speaks of; `None` if that was wrong, [`Peers::Any`] if no field says it.
///
/// `Some(None)` where no field says it.
pub(crate) fn read(fields: &Fields<'_>, names: &Names, scope: &Scope) -> Option<Option<Peers>> {
    let present = fields.present(&[names.endpoints, names.entities, names.cidr, names.cidr_set]);
    if present.len() > 1 {
        fields.cursor.error(format!(
            "{} cannot stand in one rule: write a rule for each",
            present.join(" and ")
        ));
        return None;
    }
    if let Some(endpoints) = fields.get(names.endpoints) {
        let peers = endpoints.each(|item| selector::peer(item, scope))?;
        return Some(Some(Peers::Of(peers)));
    }
    if let Some(entities) = fields.get(names.entities) {
        return self::entities(&entities).map(Some);
    }
    let blocks = if let Some(cidrs) = fields.get(names.cidr) {
        cidrs.each(|item| {
            Some(Block {
                net: prefix_or_address(item)?,
                except: Vec::new(),
            })
        })
    } else if let Some(set) = fields.get(names.cidr_set) {
        set.each(block)
    } else {
        return Some(None);
    };
    blocks.map(|blocks| Some(Peers::Of(blocks.into_iter().map(Peer::Block).collect())))
}

fn entities(cursor: &Cursor<'_>) -> Option<Peers> {
    let read = cursor.each(entity)?;
    let all: Option<Vec<_>> = read.into_iter().collect();
    Some(match all {
        Some(peers) => Peers::Of(peers.concat()),
        None => Peers::Any,
    })
}

/// What an entity stands for; `Some(None)` is everything.
fn entity(cursor: &Cursor<'_>) -> Option<Option<Vec<Peer>>> {
    let written = cursor.string()?;
    if let Some((name, instead)) = OTHER_ENTITIES.iter().find(|(name, _)| *name == written) {
        cursor.error(format!(
            "handfast does not tell the entity {name} apart: {instead}"
        ));
        return None;
    }
    let words: Vec<_> = ENTITIES.iter().map(|word| (*word, *word)).collect();
    Some(match cursor.choice("entity", &words)? {
        "all" => None,
        "world" => Some(vec![Peer::World]),
        "world-ipv4" => Some(vec![everywhere(IpNet::V4(Ipv4Net::default()))]),
        "world-ipv6" => Some(vec![everywhere(IpNet::V6(Ipv6Net::default()))]),
        "host" => Some(vec![Peer::Host]),
        "cluster" => {
            cursor.note(
                "cluster means every workload of the trust domain and the node itself; the other nodes' own addresses \
                 are outside the mesh: where they must get through, add a rule with their CIDRs",
            );
            Some(vec![Peer::Workloads(Selector::default()), Peer::Host])
        }
        _ => Some(Vec::new()),
    })
}

fn everywhere(net: IpNet) -> Peer {
    Peer::Block(Block {
        net,
        except: Vec::new(),
    })
}

pub(crate) fn block(cursor: &Cursor<'_>) -> Option<Block> {
    let fields = cursor.fields(&BLOCK)?;
    let cidr = fields.need("cidr", "write a prefix such as 10.0.0.0/8")?;
    let net = prefix(&cidr)?;
    let except = match fields.get("except") {
        Some(except) => except.each(|item| inside(item, &net))?,
        None => Vec::new(),
    };
    Some(Block { net, except })
}

fn inside(cursor: &Cursor<'_>, outer: &IpNet) -> Option<IpNet> {
    let net = prefix(cursor)?;
    if !outer.contains(&net) {
        cursor.error(format!(
            "{net} is not inside {outer}, so there is nothing to except"
        ));
        return None;
    }
    Some(net)
}

fn prefix_or_address(cursor: &Cursor<'_>) -> Option<IpNet> {
    match cursor.string()?.parse::<IpAddr>() {
        Ok(address) => plain(cursor, IpNet::from(address)),
        Err(_) => prefix(cursor),
    }
}

fn prefix(cursor: &Cursor<'_>) -> Option<IpNet> {
    let written = cursor.string()?;
    let Ok(net) = written.parse::<IpNet>() else {
        cursor.error("not a prefix: write one such as 10.0.0.0/8 or 2001:db8::/32");
        return None;
    };
    if net != net.trunc() {
        let meant = net.trunc();
        cursor.error(format!(
            "{net} has bits set beyond its length: write {meant}"
        ));
        return None;
    }
    plain(cursor, net)
}

/// Refuses IPv4 in IPv6 clothes, which no packet has as an address.
fn plain(cursor: &Cursor<'_>, net: IpNet) -> Option<IpNet> {
    match net {
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() && v6.prefix_len() >= 96 => {
            cursor.error("an IPv4-mapped prefix: write it as IPv4");
            None
        }
        _ => Some(net),
    }
}
