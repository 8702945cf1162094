//! Registration entries: which workload gets which identity.

use std::collections::BTreeSet;

use spiffe::SpiffeId;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::Registry;
use super::store::{Change, Section, int, uint};
use crate::model::{Entry, Labels, Selector, check_labels};
use crate::names::{entry_id, operator_id};
use crate::{Error, NodeName, node_id, now_ms};

const MAX_SELECTORS: usize = 32;
const MAX_DNS_NAMES: usize = 32;
const MIN_TTL: u32 = 60;
const MAX_TTL: u32 = 24 * 3600;

/// An entry as an operator wrote it.
#[derive(Debug, Clone)]
pub(crate) struct EntryOrder {
    pub(crate) spiffe_id: String,
    /// SPIFFE ID or name of a node; empty for any.
    pub(crate) parent: String,
    pub(crate) selectors: Vec<Selector>,
    pub(crate) labels: Labels,
    pub(crate) ttl: u32,
    pub(crate) dns_names: Vec<String>,
}

impl Registry {
    /// All entries.
    pub(super) async fn entries(&self) -> Result<Vec<Entry>, Error> {
        let rows = sqlx::query("SELECT * FROM entries ORDER BY spiffe_id, id")
            .fetch_all(self.store.reader())
            .await?;
        rows.iter().map(|row| self.entry(row)).collect()
    }

    fn entry(&self, row: &AnyRow) -> Result<Entry, Error> {
        let parent: &str = row.try_get("parent")?;
        let selectors: Vec<String> =
            self.stored(serde_json::from_str(row.try_get("selectors")?))?;
        let selectors: Result<Vec<Selector>, Error> =
            selectors.iter().map(|text| text.parse()).collect();
        let ttl: Option<i64> = row.try_get("ttl")?;
        Ok(Entry {
            id: row.try_get("id")?,
            spiffe_id: self.stored(operator_id(row.try_get("spiffe_id")?))?,
            parent_id: if parent.is_empty() {
                None
            } else {
                Some(self.stored(operator_id(parent))?)
            },
            selectors: self.stored(selectors)?,
            labels: self.stored(serde_json::from_str(row.try_get("labels")?))?,
            workload_ttl_seconds: ttl.and_then(|ttl| u32::try_from(ttl).ok()),
            dns_names: self.stored(serde_json::from_str(row.try_get("dns_names")?))?,
            created_at_ms: uint(row.try_get("created_ms")?),
        })
    }

    /// Makes an entry.
    pub(crate) async fn create_entry(&self, order: &EntryOrder) -> Result<Entry, Error> {
        let entry = self.read_entry(order)?;
        let mut change = self.store.begin().await?;
        if let Some(parent) = &entry.parent_id {
            self.check_parent(&mut change, parent).await?;
        }
        let selectors: Vec<String> = entry.selectors.iter().map(ToString::to_string).collect();
        let selectors = self.stored(serde_json::to_string(&selectors))?;
        let parent = entry
            .parent_id
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let same: Option<String> = sqlx::query_scalar(
            "SELECT id FROM entries WHERE spiffe_id = $1 AND parent = $2 AND selectors = $3",
        )
        .bind(entry.spiffe_id.to_string())
        .bind(&parent)
        .bind(&selectors)
        .fetch_optional(&mut *change)
        .await?;
        if let Some(id) = same {
            return Err(Error::Exists {
                what: "entry",
                name: entry.spiffe_id.to_string(),
                hint: format!(
                    "entry {id} has the same parent and selectors; delete that one first"
                ),
            });
        }
        change.number(Section::Entries).await?;
        sqlx::query("INSERT INTO entries VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
            .bind(&entry.id)
            .bind(entry.spiffe_id.to_string())
            .bind(parent)
            .bind(selectors)
            .bind(self.stored(serde_json::to_string(&entry.labels))?)
            .bind(entry.workload_ttl_seconds.map(i64::from))
            .bind(self.stored(serde_json::to_string(&entry.dns_names))?)
            .bind(int(entry.created_at_ms))
            .execute(&mut *change)
            .await?;
        change.commit().await?;
        Ok(entry)
    }

    /// Deletes an entry and returns it.
    pub(crate) async fn delete_entry(&self, id: &str) -> Result<Entry, Error> {
        let mut change = self.store.begin().await?;
        let row = sqlx::query("SELECT * FROM entries WHERE id = $1")
            .bind(id)
            .fetch_optional(&mut *change)
            .await?;
        let row = row.ok_or_else(|| Error::Missing {
            what: "entry",
            name: id.to_owned(),
        })?;
        let entry = self.entry(&row)?;
        sqlx::query("DELETE FROM entries WHERE id = $1")
            .bind(id)
            .execute(&mut *change)
            .await?;
        change.number(Section::Entries).await?;
        change.commit().await?;
        Ok(entry)
    }

    fn read_entry(&self, order: &EntryOrder) -> Result<Entry, Error> {
        let spiffe_id = entry_id(&order.spiffe_id, &self.trust_domain)?;
        let parent_id = self.read_parent(&order.parent)?;
        let selectors: BTreeSet<Selector> = order.selectors.iter().cloned().collect();
        if selectors.is_empty() || selectors.len() > MAX_SELECTORS {
            return Err(Error::invalid(
                "selectors",
                format!("give 1 to {MAX_SELECTORS}, such as --selector netns:web"),
            ));
        }
        check_labels(&order.labels)?;
        if order.dns_names.len() > MAX_DNS_NAMES {
            return Err(Error::invalid(
                "DNS names",
                format!("more than {MAX_DNS_NAMES}"),
            ));
        }
        order
            .dns_names
            .iter()
            .try_for_each(|name| check_dns_name(name))?;
        if order.ttl != 0 && !(MIN_TTL..=MAX_TTL).contains(&order.ttl) {
            return Err(Error::invalid(
                "ttl",
                "workload SVIDs live from 1 minute to 24 hours",
            ));
        }
        let id: [u8; 16] = rand::random();
        Ok(Entry {
            id: data_encoding::HEXLOWER.encode(&id),
            spiffe_id,
            parent_id,
            selectors: selectors.into_iter().collect(),
            labels: order.labels.clone(),
            workload_ttl_seconds: Some(order.ttl).filter(|ttl| *ttl > 0),
            dns_names: order.dns_names.clone(),
            created_at_ms: now_ms(),
        })
    }

    fn read_parent(&self, text: &str) -> Result<Option<SpiffeId>, Error> {
        match text {
            "" | "any" => Ok(None),
            id if id.contains("://") => operator_id(id).map(Some),
            name => node_id(&self.trust_domain, &name.parse()?).map(Some),
        }
    }

    async fn check_parent(&self, change: &mut Change, parent: &SpiffeId) -> Result<(), Error> {
        let missing = || Error::Missing {
            what: "node",
            name: parent.to_string(),
        };
        let name: NodeName = parent
            .path()
            .strip_prefix("/handfast/node/")
            .and_then(|name| name.parse().ok())
            .filter(|_| parent.is_member_of(&self.trust_domain))
            .ok_or_else(missing)?;
        self.binding(change, &name)
            .await?
            .map(drop)
            .ok_or_else(missing)
    }
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
