//! Flows that were seen: the lines that `handfast observe --output json` writes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use crate::model::Protocol;
use crate::set::{ReadError, Source};
use crate::tools::flow::End;
use crate::tools::inventory::{self, Inventory};

/// The longest line that is read.
const MAX_LINE: usize = 64 * 1024;

/// More broken lines than this are not listed.
const MAX_ERRORS: usize = 20;

/// What a gate said of a flow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Seen {
    /// A new flow passed.
    Forwarded,
    /// It passed, and a rule in audit mode would have stopped it.
    Audit,
    /// A packet waited for its pair's proof.
    Held,
    /// A packet did not pass.
    Dropped,
}

/// One kind of flow, and how often it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Who opened it.
    pub from: End,
    /// Toward whom.
    pub to: End,
    /// The identities as the gates knew them.
    pub identities: (Option<String>, Option<String>),
    /// The protocol.
    pub protocol: Protocol,
    /// The destination's port.
    pub port: u16,
    /// How often each verdict was seen.
    pub seen: BTreeMap<Seen, u64>,
    /// Why it was dropped, the last time.
    pub reason: Option<String>,
}

#[derive(Deserialize)]
struct Line {
    verdict: Seen,
    #[serde(default)]
    reason: String,
    source: IpAddr,
    destination: IpAddr,
    #[serde(default)]
    destination_port: u16,
    protocol: String,
    from: Option<String>,
    to: Option<String>,
}

/// Reads the lines and adds up those of one flow; whoever is in the inventory is called by its name there.
///
/// # Errors
/// The lines that are not such a document.
pub fn read(source: &Source, inventory: &Inventory) -> Result<Vec<Observed>, Vec<ReadError>> {
    let mut flows: BTreeMap<_, Observed> = BTreeMap::new();
    let mut errors = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let line = match parse(line) {
            Ok(line) => line,
            Err(message) => {
                if errors.len() < MAX_ERRORS {
                    errors.push(ReadError {
                        file: source.name.clone(),
                        line: number + 1,
                        column: 1,
                        field: String::new(),
                        message,
                    });
                }
                continue;
            }
        };
        let protocol = inventory::protocol(&line.protocol).unwrap_or(Protocol::Any);
        let from = end(inventory, line.from.as_deref(), line.source);
        let to = end(inventory, line.to.as_deref(), line.destination);
        let key = (
            from.to_string(),
            to.to_string(),
            protocol,
            line.destination_port,
        );
        let flow = flows.entry(key).or_insert_with(|| Observed {
            from,
            to,
            identities: (line.from.clone(), line.to.clone()),
            protocol,
            port: line.destination_port,
            seen: BTreeMap::new(),
            reason: None,
        });
        *flow.seen.entry(line.verdict).or_default() += 1;
        if line.verdict == Seen::Dropped {
            flow.reason = Some(line.reason);
        }
    }
    if errors.is_empty() {
        Ok(flows.into_values().collect())
    } else {
        Err(errors)
    }
}

fn parse(line: &str) -> Result<Line, String> {
    if line.len() > MAX_LINE {
        return Err(format!(
            "a line of {} bytes, and {MAX_LINE} is the most",
            line.len()
        ));
    }
    serde_json::from_str(line)
        .map_err(|error| format!("not a line of `handfast observe --output json`: {error}"))
}

fn end(inventory: &Inventory, identity: Option<&str>, address: IpAddr) -> End {
    match identity {
        Some("host") => End::Host,
        Some("world") => End::Outside(address),
        Some(identity) if identity.starts_with("spiffe://") => {
            inventory.end(identity).unwrap_or(End::Outside(address))
        }
        _ => inventory
            .at(address)
            .map_or(End::Outside(address), |known| known.end()),
    }
}
