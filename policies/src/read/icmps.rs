//! ICMP messages in a rule, by type.
//!
//! A flow of ICMP is opened by its first message, and its answers belong to it; so a rule names what opens it. An
//! error belongs to the flow that it quotes and passes with it: no rule can open or close that.

use crate::document::{PortMatch, PortRange};
use crate::model::{Protocol, Verdict};
use crate::ports::Ports;
use crate::read::cursor::{Cursor, Fields};
use crate::read::shape::{Item, Schema, Shape, field};

/// The most fields that one item of `icmps` lists, as in Cilium.
const MAX_FIELDS: usize = 40;

pub(crate) static RULE: Schema = Schema {
    about: "ICMP messages.",
    known: &[field(
        "fields",
        Shape::List(Item::Map(&FIELD), 1, MAX_FIELDS),
        "Each one type of message.",
    )
    .required()],
    refused: &[],
};

static FIELD: Schema = Schema {
    about: "One type of ICMP message.",
    known: &[
        field(
            "family",
            Shape::Choice(&["IPv4", "IPv6"]),
            "IPv4 unless it is said.",
        ),
        field(
            "type",
            Shape::NumberOrWord,
            "Its number, 0 to 255, or its name, such as EchoRequest.",
        )
        .required(),
    ],
    refused: &[("code", "a rule means every code of a type: remove it")],
};

/// Names of types (IANA "ICMP Parameters", RFC 792 and later).
const V4: &[(&str, u8)] = &[
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

/// The same for IPv6 (IANA "ICMPv6 Parameters", RFC 4443 and later).
const V6: &[(&str, u8)] = &[
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];

/// The messages of a rule: `Some(None)` if it names none, `None` if they were wrong.
pub(crate) fn read(fields: &Fields<'_>, verdict: Verdict) -> Option<Option<Vec<PortMatch>>> {
    let Some(list) = fields.get("icmps") else {
        return Some(None);
    };
    if list.items()?.is_empty() {
        return Some(None);
    }
    if fields.get("toPorts").is_some() {
        list.error("icmps and toPorts cannot stand in one rule: write a rule for each");
        return None;
    }
    let messages = list.each(|item| messages(item, verdict))?;
    Some(Some(messages.concat()))
}

fn messages(cursor: &Cursor<'_>, verdict: Verdict) -> Option<Vec<PortMatch>> {
    let fields = cursor
        .fields(&RULE)?
        .need("fields", "list the types of message")?;
    match fields.items()?.len() {
        0 => fields.error("there is no type in it: leave icmps out to mean every protocol"),
        1..=MAX_FIELDS => return fields.each(|item| message(item, verdict)),
        more => fields.error(format!(
            "{more} types, and {MAX_FIELDS} is the most: write another item of icmps"
        )),
    }
    None
}

fn message(cursor: &Cursor<'_>, verdict: Verdict) -> Option<PortMatch> {
    let fields = cursor.fields(&FIELD)?;
    let protocol = match fields.get("family") {
        Some(family) => family.choice(
            "family",
            &[("IPv4", Protocol::Icmp), ("IPv6", Protocol::Icmpv6)],
        )?,
        None => Protocol::Icmp,
    };
    let written = fields.need("type", "write a number from 0 to 255, or a name")?;
    let number = number(&written, protocol)?;
    let is_error = match protocol {
        Protocol::Icmp => matches!(number, 3 | 4 | 11 | 12),
        _ => matches!(number, 1..=4),
    };
    if is_error {
        let what = "an error belongs to the flow that it is about, and passes with it alone";
        if verdict == Verdict::Deny {
            written.error(format!("{what}: remove it, and deny the flow"));
            return None;
        }
        written.note(format!("{what}: naming it changes nothing"));
    }
    let port = u16::from(number);
    let ports = Ports::new(port, port)?;
    Some(PortMatch::Range(PortRange { protocol, ports }))
}

fn number(cursor: &Cursor<'_>, protocol: Protocol) -> Option<u8> {
    let written = cursor.word()?;
    if written.starts_with(|c: char| c.is_ascii_digit()) {
        let number = written.parse().ok();
        if number.is_none() || (written.len() > 1 && written.starts_with('0')) {
            cursor.error("not a type: write a number from 0 to 255, or a name such as EchoRequest");
            return None;
        }
        return number;
    }
    let names = if protocol == Protocol::Icmp { V4 } else { V6 };
    cursor.choice("type of ICMP message", names)
}
