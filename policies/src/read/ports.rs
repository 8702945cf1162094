//! The ports of a rule.

use crate::document::PortRange;
use crate::model::Protocol;
use crate::ports::Ports;
use crate::read::cursor::{Cursor, Fields, Schema};

/// The most ports that one item of `toPorts` lists, as in Cilium.
const MAX_PORTS: usize = 40;

/// What `ANY` with ports means, as in Cilium: the protocols that have ports.
const WITH_PORTS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

static ITEM: Schema = Schema {
    known: &["ports"],
    refused: &[
        (
            "rules",
            "requests are not looked into: remove it, and let the workload judge them",
        ),
        ("terminatingTLS", "TLS is not terminated: remove it"),
        ("originatingTLS", "TLS is not originated: remove it"),
        ("serverNames", "TLS is not looked into: remove it"),
        ("listener", "there is no proxy: remove it"),
        ("port", "write it in an item of ports"),
        ("protocol", "write it in an item of ports"),
    ],
};

static PORT: Schema = Schema {
    known: &["port", "endPort", "protocol"],
    refused: &[],
};

/// The ports of a rule: `Some(None)` if it names none and so means all, `None` if they were wrong.
pub(crate) fn read(fields: &Fields<'_>) -> Option<Option<Vec<PortRange>>> {
    let Some(list) = fields.get("toPorts") else {
        return Some(None);
    };
    let items = list.items()?;
    if items.is_empty() {
        return Some(None);
    }
    let read: Vec<_> = items.iter().map(item).collect();
    let read: Option<Vec<Vec<PortRange>>> = read.into_iter().collect();
    Some(Some(read?.concat()))
}

fn item(cursor: &Cursor<'_>) -> Option<Vec<PortRange>> {
    let ports = cursor
        .fields(&ITEM)?
        .need("ports", "leave toPorts out to mean every port")?;
    let items = ports.items()?;
    match items.len() {
        0 => ports.error("there is no port in it: leave toPorts out to mean every port"),
        1..=MAX_PORTS => {
            let read: Vec<_> = items.iter().map(port).collect();
            let read: Option<Vec<Vec<PortRange>>> = read.into_iter().collect();
            return read.map(|ranges| ranges.concat());
        }
        more => ports.error(format!(
            "{more} ports, and {MAX_PORTS} is the most: write ranges with endPort, or another item of toPorts"
        )),
    }
    None
}

fn port(cursor: &Cursor<'_>) -> Option<Vec<PortRange>> {
    let fields = cursor.fields(&PORT)?;
    let first = fields
        .need("port", "write a number, or \"0\" for every port")
        .and_then(|cursor| number(&cursor));
    let protocols = match fields.get("protocol") {
        Some(cursor) => protocols(&cursor),
        None => Some(WITH_PORTS.to_vec()),
    };
    let last = match fields.get("endPort") {
        Some(cursor) => number(&cursor).map(|last| Some((cursor, last))),
        None => Some(None),
    };
    let (first, protocols, last) = (first?, protocols?, last?);
    let ports = match last {
        Some((cursor, _)) if first == 0 => {
            cursor.error("port 0 means every port, so there is no range to end: remove endPort");
            return None;
        }
        None if first == 0 => Ports::ANY,
        None => Ports::new(first, first)?,
        // Kubernetes' encoders write an absent number as 0.
        Some((_, 0)) => Ports::new(first, first)?,
        Some((cursor, last)) => Ports::new(first, last).or_else(|| {
            cursor.error(format!(
                "the range is turned round: endPort {last} is below port {first}"
            ));
            None
        })?,
    };
    Some(
        protocols
            .into_iter()
            .map(|protocol| PortRange { protocol, ports })
            .collect(),
    )
}

fn number(cursor: &Cursor<'_>) -> Option<u16> {
    let written = cursor.word()?;
    let digits = !written.is_empty() && written.chars().all(|c| c.is_ascii_digit());
    if !digits {
        let named = written.starts_with(|c: char| c.is_ascii_alphabetic());
        cursor.error(match named {
            true => "handfast does not enforce named ports: write the number",
            false => "not a port: write a number from 0 to 65535",
        });
        return None;
    }
    match written.parse() {
        Ok(_) if written.len() > 1 && written.starts_with('0') => {
            cursor.error("a port with a leading zero could be meant as octal: write it without");
            None
        }
        Ok(number) => Some(number),
        Err(_) => {
            cursor.error("not a port: write a number from 0 to 65535");
            None
        }
    }
}

fn protocols(cursor: &Cursor<'_>) -> Option<Vec<Protocol>> {
    let written = cursor.string()?;
    if matches!(
        written.to_ascii_uppercase().as_str(),
        "ICMP" | "ICMPV6" | "VRRP" | "IGMP"
    ) {
        cursor.error(format!(
            "{written} has no ports: a rule without toPorts speaks of it too"
        ));
        return None;
    }
    let choices = [
        ("TCP", Some(Protocol::Tcp)),
        ("UDP", Some(Protocol::Udp)),
        ("SCTP", Some(Protocol::Sctp)),
        ("ANY", None),
    ];
    let upper = written.to_ascii_uppercase();
    let chosen = match choices.iter().find(|(name, _)| *name == upper) {
        Some((_, chosen)) => *chosen,
        None => cursor.choice("protocol", &choices)?,
    };
    Some(chosen.map_or_else(|| WITH_PORTS.to_vec(), |protocol| vec![protocol]))
}
