//! The ports of a rule.

use crate::document::{NamedPort, PortMatch, PortRange};
use crate::model::Protocol;
use crate::ports::Ports;
use crate::read::cursor::{Cursor, Fields};
use crate::read::shape::{Item, Schema, Shape, field};

/// The most ports that one item of `toPorts` lists, as in Cilium.
const MAX_PORTS: usize = 40;

/// The longest name of a port (RFC 6335 5.1).
const MAX_NAME: usize = 15;

/// What `ANY` with ports means, as in Cilium: the protocols that have ports.
const WITH_PORTS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

pub(crate) static ITEM: Schema = Schema {
    about: "Destination ports.",
    known: &[field(
        "ports",
        Shape::List(Item::Map(&PORT), 1, MAX_PORTS),
        "Any of these.",
    )
    .required()],
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
    about: "A port, a range of ports, or a port by its name.",
    known: &[
        field(
            "port",
            Shape::NumberOrWord,
            "A number, 0 for every port, or the name that the called workload gives it.",
        )
        .required(),
        field(
            "endPort",
            Shape::Number(0, 65_535),
            "The last port of a range that begins with port.",
        ),
        field(
            "protocol",
            Shape::Choice(&["TCP", "UDP", "SCTP", "ANY"]),
            "ANY, which is also what nothing means, is all three others.",
        ),
    ],
    refused: &[],
};

/// The ports of a rule: `Some(None)` if it names none and so means all, `None` if they were wrong.
pub(crate) fn read(fields: &Fields<'_>) -> Option<Option<Vec<PortMatch>>> {
    let Some(list) = fields.get("toPorts") else {
        return Some(None);
    };
    if list.items()?.is_empty() {
        return Some(None);
    }
    Some(Some(list.each(item)?.concat()))
}

fn item(cursor: &Cursor<'_>) -> Option<Vec<PortMatch>> {
    let ports = cursor
        .fields(&ITEM)?
        .need("ports", "leave toPorts out to mean every port")?;
    match ports.items()?.len() {
        0 => ports.error("there is no port in it: leave toPorts out to mean every port"),
        1..=MAX_PORTS => return ports.each(port).map(|ranges| ranges.concat()),
        more => ports.error(format!(
            "{more} ports, and {MAX_PORTS} is the most: write ranges with endPort, or another item of toPorts"
        )),
    }
    None
}

fn port(cursor: &Cursor<'_>) -> Option<Vec<PortMatch>> {
    let fields = cursor.fields(&PORT)?;
    let first = fields
        .need("port", "write a number, or \"0\" for every port")
        .and_then(|cursor| number_or_name(&cursor));
    let protocols = match fields.get("protocol") {
        Some(cursor) => protocols(&cursor),
        None => Some(WITH_PORTS.to_vec()),
    };
    let (first, protocols) = (first?, protocols?);
    let first = match first {
        Ok(number) => number,
        Err(name) => {
            if let Some(end) = fields.get("endPort") {
                end.error(
                    "a port with a name begins no range: remove endPort, or write the number",
                );
                return None;
            }
            let protocol = match protocols.as_slice() {
                [only] => Some(*only),
                _ => None,
            };
            return Some(vec![PortMatch::Named(NamedPort { name, protocol })]);
        }
    };
    let ports = match fields.get("endPort") {
        Some(cursor) if first == 0 => {
            cursor.error("port 0 means every port, so there is no range to end: remove endPort");
            return None;
        }
        None if first == 0 => Ports::ANY,
        None => Ports::new(first, first)?,
        // Kubernetes' encoders write an absent number as 0.
        Some(cursor) => match number(&cursor)? {
            0 => Ports::new(first, first)?,
            last => range(&cursor, first, last)?,
        },
    };
    let range = |protocol| PortMatch::Range(PortRange { protocol, ports });
    Some(protocols.into_iter().map(range).collect())
}

pub(crate) fn range(cursor: &Cursor<'_>, first: u16, last: u16) -> Option<Ports> {
    let ports = Ports::new(first, last);
    if ports.is_none() {
        cursor.error(format!(
            "the range is turned round: endPort {last} is below port {first}"
        ));
    }
    ports
}

/// A port's number, or its name.
pub(crate) fn number_or_name(cursor: &Cursor<'_>) -> Option<Result<u16, String>> {
    let written = cursor.word()?;
    let named = written.contains(|c: char| c.is_ascii_alphabetic());
    // Without quotes, other readers of YAML take 0x50 for 80 and 1e3 for 1000.
    let otherwise = written.starts_with(|c: char| c.is_ascii_digit()) && cursor.is_plain();
    if !named || otherwise {
        return number(cursor).map(Ok);
    }
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = !written.starts_with('-') && !written.ends_with('-');
    if written.len() > MAX_NAME || !written.chars().all(inner) || !edges || written.contains("--") {
        cursor.error(format!(
            "not a port: write a number from 0 to 65535, or a name of at most {MAX_NAME} of a-z, 0-9 and single -"
        ));
        return None;
    }
    Some(Err(written.to_owned()))
}

pub(crate) fn number(cursor: &Cursor<'_>) -> Option<u16> {
    let written = cursor.word()?;
    let digits = !written.is_empty() && written.chars().all(|c| c.is_ascii_digit());
    match written.parse() {
        Ok(_) if written.len() > 1 && written.starts_with('0') => {
            cursor.error("a port with a leading zero could be meant as octal: write it without");
            None
        }
        Ok(number) if digits => Some(number),
        _ => {
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
            "{written} has no ports: name its messages with icmps, or leave toPorts out to mean every protocol"
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
