//! What an operator writes of an entry, checked before anything is changed.

use std::collections::BTreeSet;

use spiffe::{SpiffeId, TrustDomain};

use crate::convert::trust_domains;
use crate::model::{Entry, Labels, Selector, check_labels};
use crate::names::{entry_id, is_reserved, operator_id};
use crate::{Error, node_id, now_ms, proto};

const MAX_SELECTORS: usize = 32;
const MAX_DNS_NAMES: usize = 32;
const MAX_FEDERATIONS: usize = 64;
/// SPIFFE Workload API 5.2.1: at most 1024 bytes (W-10).
const MAX_HINT: usize = 1024;
const MIN_TTL: u32 = 60;
const MAX_TTL: u32 = 24 * 3600;
/// No SVID of an entry that says how long lives longer (seconds).
pub(crate) const MAX_SVID_TTL: u64 = MAX_TTL as u64;

/// An entry as an operator wrote it.
#[derive(Debug, Clone, Default)]
pub(crate) struct EntryOrder {
    pub(crate) spiffe_id: String,
    /// SPIFFE ID of a node or of entries, or name of a node; empty or `any`
    /// for every node.
    pub(crate) parent: String,
    pub(crate) selectors: Vec<Selector>,
    pub(crate) labels: Labels,
    /// Seconds; 0 for the CA's default.
    pub(crate) ttl: u32,
    pub(crate) jwt_ttl: u32,
    pub(crate) dns_names: Vec<String>,
    pub(crate) hint: String,
    pub(crate) federates_with: Vec<String>,
    /// Unix milliseconds; 0 for never.
    pub(crate) expires_at_ms: u64,
}

impl TryFrom<proto::Entry> for EntryOrder {
    type Error = Error;

    fn try_from(entry: proto::Entry) -> Result<Self, Error> {
        let selectors = entry.selectors.into_iter().map(Selector::try_from);
        Ok(Self {
            spiffe_id: entry.spiffe_id,
            parent: entry.parent_id,
            selectors: selectors.collect::<Result<_, _>>()?,
            labels: entry.labels.into_iter().collect(),
            ttl: entry.workload_ttl_seconds,
            jwt_ttl: entry.jwt_ttl_seconds,
            dns_names: entry.dns_names,
            hint: entry.hint,
            federates_with: entry.federates_with,
            expires_at_ms: entry.expires_at_ms,
        })
    }
}

impl EntryOrder {
    /// The entry that is meant, with a new ID.
    pub(super) fn read(&self, domain: &TrustDomain) -> Result<Entry, Error> {
        let spiffe_id = entry_id(&self.spiffe_id, domain)?;
        let parent_id = parent_of(&self.parent, domain)?;
        let selectors: BTreeSet<Selector> = self.selectors.iter().cloned().collect();
        if selectors.is_empty() || selectors.len() > MAX_SELECTORS {
            return Err(Error::invalid(
                "selectors",
                format!("give 1 to {MAX_SELECTORS}, such as --selector netns:web"),
            ));
        }
        check_labels(&self.labels)?;
        self.check_names()?;
        let mut federates_with = trust_domains(&self.federates_with)?;
        federates_with.sort();
        federates_with.dedup();
        if federates_with.contains(domain) {
            return Err(Error::invalid(
                "federates-with",
                format!("{domain} is this CA's own trust domain, whose bundle every workload gets"),
            ));
        }
        let now = now_ms();
        if self.expires_at_ms != 0 && self.expires_at_ms <= now {
            return Err(Error::invalid("expiry", "it lies in the past"));
        }
        let id: [u8; 16] = rand::random();
        Ok(Entry {
            id: data_encoding::HEXLOWER.encode(&id),
            spiffe_id,
            parent_id,
            selectors: selectors.into_iter().collect(),
            labels: self.labels.clone(),
            workload_ttl_seconds: read_ttl("ttl", self.ttl)?,
            dns_names: self.dns_names.clone(),
            hint: self.hint.clone(),
            federates_with,
            jwt_ttl_seconds: read_ttl("jwt-ttl", self.jwt_ttl)?,
            expires_at_ms: Some(self.expires_at_ms).filter(|end| *end > 0),
            created_at_ms: now,
            revision: 1,
        })
    }

    fn check_names(&self) -> Result<(), Error> {
        if self.dns_names.len() > MAX_DNS_NAMES {
            return Err(Error::invalid(
                "DNS names",
                format!("more than {MAX_DNS_NAMES}"),
            ));
        }
        self.dns_names
            .iter()
            .try_for_each(|name| check_dns_name(name))?;
        if self.federates_with.len() > MAX_FEDERATIONS {
            return Err(Error::invalid(
                "federates-with",
                format!("more than {MAX_FEDERATIONS} trust domains"),
            ));
        }
        if self.hint.len() > MAX_HINT || self.hint.chars().any(char::is_control) {
            return Err(Error::invalid(
                "hint",
                format!("at most {MAX_HINT} bytes of printable characters"),
            ));
        }
        Ok(())
    }
}

fn read_ttl(what: &str, seconds: u32) -> Result<Option<u32>, Error> {
    if seconds != 0 && !(MIN_TTL..=MAX_TTL).contains(&seconds) {
        return Err(Error::invalid(
            what,
            "SVIDs for workloads live from 1 minute to 24 hours",
        ));
    }
    Ok(Some(seconds).filter(|seconds| *seconds > 0))
}

/// Reads a parent: none for every node.
pub(crate) fn parent_of(text: &str, domain: &TrustDomain) -> Result<Option<SpiffeId>, Error> {
    let id = match text {
        "" | "any" => return Ok(None),
        id if id.contains("://") => operator_id(id)?,
        name => node_id(domain, &name.parse()?)?,
    };
    let bad = |problem: &str| Err(Error::invalid(format!("parent {id}"), problem));
    if !id.is_member_of(domain) {
        return bad("it is of another trust domain");
    }
    if is_reserved(&id) && !id.path().starts_with("/handfast/node/") {
        return bad("it is the CA's own; name a node, or the SPIFFE ID of entries");
    }
    if id.path().is_empty() {
        return bad("a whole trust domain is no parent; write `any` for every node");
    }
    Ok(Some(id))
}

fn check_dns_name(name: &str) -> Result<(), Error> {
    let label = |label: &str| {
        let plain = label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        (1..=63).contains(&label.len()) && plain && !label.starts_with('-') && !label.ends_with('-')
    };
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if name.len() <= 253 && rest.split('.').all(label) {
        return Ok(());
    }
    let shown: String = name.chars().take(64).collect();
    Err(Error::invalid(
        format!("DNS name {shown:?}"),
        "use lower-case letters, digits, '-' and '.'",
    ))
}
