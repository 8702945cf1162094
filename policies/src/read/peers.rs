//! The far ends of a rule: selectors or prefixes.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::read::cursor::{Cursor, Fields, Schema};
use crate::read::selector::{self, Scope};
use crate::selector::{Block, Peers};

static BLOCK: Schema = Schema {
    known: &["cidr", "except"],
    refused: &[
        ("cidrGroupRef", "write the prefixes out, each with cidr"),
        (
            "cidrGroupSelector",
            "write the prefixes out, each with cidr",
        ),
    ],
};

/// The names of the fields that say who, in one direction.
pub(crate) struct Names {
    pub(crate) endpoints: &'static str,
    pub(crate) cidr: &'static str,
    pub(crate) cidr_set: &'static str,
}

/// Who a rule speaks of; `None` if that was wrong, [`Peers::Any`] if no field says it.
pub(crate) fn read(fields: &Fields<'_>, names: &Names, scope: &Scope) -> Option<Peers> {
    let present = fields.present(&[names.endpoints, names.cidr, names.cidr_set]);
    if present.len() > 1 {
        fields.cursor.error(format!(
            "{} cannot stand in one rule: write a rule for each",
            present.join(" and ")
        ));
        return None;
    }
    if let Some(endpoints) = fields.get(names.endpoints) {
        let items = endpoints.items()?;
        let read: Vec<_> = items
            .iter()
            .map(|item| selector::peer(item, scope))
            .collect();
        return read
            .into_iter()
            .collect::<Option<_>>()
            .map(Peers::Endpoints);
    }
    let blocks = if let Some(cidrs) = fields.get(names.cidr) {
        each(&cidrs, |item| {
            Some(Block {
                net: prefix_or_address(item)?,
                except: Vec::new(),
            })
        })
    } else if let Some(set) = fields.get(names.cidr_set) {
        each(&set, block)
    } else {
        return Some(Peers::Any);
    };
    blocks.map(Peers::Blocks)
}

/// Reads every item, so that each error is found, and has all or none.
fn each<T>(cursor: &Cursor<'_>, read: impl Fn(&Cursor<'_>) -> Option<T>) -> Option<Vec<T>> {
    let read: Vec<_> = cursor.items()?.iter().map(read).collect();
    read.into_iter().collect()
}

fn block(cursor: &Cursor<'_>) -> Option<Block> {
    let fields = cursor.fields(&BLOCK)?;
    let cidr = fields.need("cidr", "write a prefix such as 10.0.0.0/8")?;
    let net = prefix(&cidr)?;
    let except = match fields.get("except") {
        Some(except) => each(&except, |item| inside(item, &net))?,
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
