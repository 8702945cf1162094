//! Several trust domains' bundles in one document (SPIFFE Trust Domain and Bundle, section 4.3; B-6).

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value, json};
use spiffe::TrustDomain;

use super::spiffe_json::{Document, Read};
use super::{TrustBundle, invalid};
use crate::Error;

/// Longer texts are not read.
const MAX_MAP: usize = 16 << 20;
const MAX_DOMAINS: usize = 1000;

/// Bundles by trust domain; read as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BundleMap {
    bundles: BTreeMap<TrustDomain, TrustBundle>,
}

impl BundleMap {
    /// Reads a bundle map. A name that stands there twice makes all of it
    /// void, however it is written. Refresh hints are ignored.
    pub fn from_spiffe_json(text: &[u8]) -> Result<(Self, Vec<String>), Error> {
        if text.len() > MAX_MAP {
            return Err(invalid(format!("a map longer than {MAX_MAP} bytes")));
        }
        let File { trust_domains } = serde_json::from_slice(text)
            .map_err(|error| invalid(format!("not a bundle map: {error}")))?;
        let (mut bundles, mut ignored) = (BTreeMap::new(), Vec::new());
        for (name, document) in trust_domains.0 {
            let read = document.read(name.clone())?;
            let Read {
                bundle,
                ignored: left_out,
            } = read;
            ignored.extend(left_out.into_iter().map(|why| format!("{name}: {why}")));
            bundles.insert(name, bundle.with_refresh_hint(0));
        }
        Ok((Self { bundles }, ignored))
    }

    /// The map in SPIFFE's JSON form.
    pub fn to_spiffe_json(&self) -> Value {
        let bundles: Map<String, Value> = self
            .iter()
            .map(|bundle| {
                (
                    bundle.trust_domain().as_str().to_owned(),
                    bundle.to_spiffe_json(),
                )
            })
            .collect();
        json!({ "trust_domains": bundles })
    }

    /// The bundles, by name.
    pub fn iter(&self) -> impl Iterator<Item = &TrustBundle> {
        self.bundles.values()
    }

    /// The bundle of a trust domain: its own and no other's (B-5).
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&TrustBundle> {
        self.bundles.get(trust_domain)
    }
}

impl FromIterator<TrustBundle> for BundleMap {
    fn from_iter<I: IntoIterator<Item = TrustBundle>>(bundles: I) -> Self {
        let named = |bundle: TrustBundle| (bundle.trust_domain().clone(), bundle);
        Self {
            bundles: bundles.into_iter().map(named).collect(),
        }
    }
}

#[derive(Deserialize)]
struct File {
    trust_domains: Unique,
}

/// An object whose names differ: libraries would silently take the last.
struct Unique(BTreeMap<TrustDomain, Document>);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Domains)
    }
}

struct Domains;

impl<'de> Visitor<'de> for Domains {
    type Value = Unique;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a bundle for each trust domain")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
        let mut found = BTreeMap::new();
        while let Some((name, document)) = map.next_entry::<String, Document>()? {
            let name = TrustDomain::new(&name)
                .map_err(|error| A::Error::custom(format!("trust domain {name:?}: {error}")))?;
            if found.contains_key(&name) {
                return Err(A::Error::custom(format!("{name} stands there twice")));
            }
            found.insert(name, document);
            if found.len() > MAX_DOMAINS {
                return Err(A::Error::custom(format!(
                    "more than {MAX_DOMAINS} trust domains"
                )));
            }
        }
        Ok(Unique(found))
    }
}
