//! Foreign trust domains in the store: how their bundles are fetched, and the latest of each.

use std::collections::BTreeMap;
use std::sync::Arc;

use spiffe::TrustDomain;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::Registry;
use super::store::{Change, Section, int, uint};
use crate::bundle::TrustBundle;
use crate::federation::{Endpoint, FetchState, Relationship};
use crate::{Error, authority, now_ms};

const MAX_RELATIONSHIPS: i64 = 1000;

/// Foreign trust domains by name.
pub(crate) type Federations = BTreeMap<TrustDomain, Relationship>;

/// What came of a bundle that was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// It is new.
    New,
    /// It says what is known already.
    Same,
}

impl Registry {
    /// All of them, as they are now.
    pub(crate) async fn federations(&self) -> Result<Federations, Error> {
        let rows = sqlx::query("SELECT * FROM federations")
            .fetch_all(self.store.reader())
            .await?;
        let read = rows.iter().map(|row| {
            let relationship = self.relationship(row)?;
            Ok((relationship.trust_domain.clone(), relationship))
        });
        read.collect()
    }

    /// Makes a relationship whose bundle is fetched from now on.
    pub(crate) async fn create_federation(
        &self,
        trust_domain: &TrustDomain,
        endpoint: &Endpoint,
        bundle: Option<&TrustBundle>,
    ) -> Result<(), Error> {
        let mut change = self.store.begin().await?;
        let known = self.known(&mut change, trust_domain).await?;
        if known.as_ref().is_some_and(|known| known.endpoint.is_some()) {
            return Err(Error::Exists {
                what: "federation with",
                name: trust_domain.to_string(),
                hint: "delete it first, or set its bundle with `handfast bundle set`".to_owned(),
            });
        }
        let bundle = bundle.or(known.as_ref().and_then(|known| known.bundle.as_deref()));
        self.write(&mut change, trust_domain, Some(endpoint), bundle)
            .await?;
        change.number(Section::Federation).await?;
        change.commit().await
    }

    /// Puts a bundle in place, whatever stood there: an operator's word.
    pub(crate) async fn set_bundle(&self, bundle: &TrustBundle) -> Result<(), Error> {
        let mut change = self.store.begin().await?;
        let trust_domain = bundle.trust_domain();
        let known = self.known(&mut change, trust_domain).await?;
        let endpoint = known.as_ref().and_then(|known| known.endpoint.as_ref());
        self.write(&mut change, trust_domain, endpoint, Some(bundle))
            .await?;
        change.number(Section::Federation).await?;
        change.commit().await
    }

    /// Is a bundle that was fetched the one that is stored? Then that it was
    /// fetched is all there is to note.
    pub(crate) async fn is_newest(&self, bundle: &TrustBundle) -> Result<bool, Error> {
        let mut change = self.store.begin_beside().await?;
        let known = self.known(&mut change, bundle.trust_domain()).await?;
        let same = known.is_some_and(|known| known.bundle.as_deref() == Some(bundle));
        if same {
            touch(&mut change, bundle.trust_domain()).await?;
            change.commit().await?;
        }
        Ok(same)
    }

    /// Stores a bundle that was fetched (F-7): never an older one, and never
    /// one beside another. Nothing, if the relationship is gone.
    pub(crate) async fn fetched(&self, bundle: &TrustBundle) -> Result<Fetched, Error> {
        let mut change = self.store.begin().await?;
        let trust_domain = bundle.trust_domain();
        let Some(known) = self.known(&mut change, trust_domain).await? else {
            return Ok(Fetched::Same);
        };
        if let Some(stored) = &known.bundle {
            let (had, got) = (stored.sequence(), bundle.sequence());
            // One without a number is not newer than one with (B-2).
            if got < had {
                return Err(Error::invalid(
                    format!("bundle of {trust_domain}"),
                    format!(
                        "its spiffe_sequence {got} is lower than that of the stored one, {had}; an old one, or its domain was restored from a backup (then: `handfast bundle set`)"
                    ),
                ));
            }
            if **stored == *bundle {
                touch(&mut change, trust_domain).await?;
                change.commit().await?;
                return Ok(Fetched::Same);
            }
        }
        sqlx::query("UPDATE federations SET bundle = $1, fetched_ms = $2, tried_ms = $2, problem = '' WHERE trust_domain = $3")
            .bind(bundle.to_bytes())
            .bind(int(now_ms()))
            .bind(trust_domain.as_str())
            .execute(&mut *change)
            .await?;
        change.number(Section::Federation).await?;
        change.commit().await?;
        Ok(Fetched::New)
    }

    /// Notes why a fetch brought nothing.
    pub(crate) async fn not_fetched(
        &self,
        trust_domain: &TrustDomain,
        problem: &str,
    ) -> Result<(), Error> {
        let mut change = self.store.begin_beside().await?;
        let problem: String = problem
            .chars()
            .filter(|c| !c.is_control())
            .take(512)
            .collect();
        sqlx::query("UPDATE federations SET tried_ms = $1, problem = $2 WHERE trust_domain = $3")
            .bind(int(now_ms()))
            .bind(problem)
            .bind(trust_domain.as_str())
            .execute(&mut *change)
            .await?;
        change.commit().await
    }

    /// Ends a relationship.
    pub(crate) async fn delete_federation(&self, trust_domain: &TrustDomain) -> Result<(), Error> {
        let mut change = self.store.begin().await?;
        let deleted = sqlx::query("DELETE FROM federations WHERE trust_domain = $1")
            .bind(trust_domain.as_str())
            .execute(&mut *change)
            .await?;
        if deleted.rows_affected() == 0 {
            return Err(Error::Missing {
                what: "federation with",
                name: trust_domain.to_string(),
            });
        }
        change.number(Section::Federation).await?;
        change.commit().await
    }

    /// How many entries federate with it.
    pub(crate) async fn federating(&self, trust_domain: &TrustDomain) -> Result<u64, Error> {
        // A JSON list of names, which have no characters that JSON escapes.
        let name = trust_domain.as_str().replace('_', "\\_");
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM entries WHERE federates_with LIKE $1 ESCAPE '\\'",
        )
        .bind(format!("%\"{name}\"%"))
        .fetch_one(self.store.reader())
        .await?;
        Ok(uint(count))
    }

    async fn known(
        &self,
        change: &mut Change,
        trust_domain: &TrustDomain,
    ) -> Result<Option<Relationship>, Error> {
        let row = sqlx::query("SELECT * FROM federations WHERE trust_domain = $1")
            .bind(trust_domain.as_str())
            .fetch_optional(&mut **change)
            .await?;
        row.map(|row| self.relationship(&row)).transpose()
    }

    async fn write(
        &self,
        change: &mut Change,
        trust_domain: &TrustDomain,
        endpoint: Option<&Endpoint>,
        bundle: Option<&TrustBundle>,
    ) -> Result<(), Error> {
        if *trust_domain == self.trust_domain {
            return Err(Error::invalid(
                format!("trust domain {trust_domain}"),
                "it is our own: its bundle is made by `handfast ca rotate`, not set",
            ));
        }
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM federations")
            .fetch_one(&mut **change)
            .await?;
        if count >= MAX_RELATIONSHIPS {
            return Err(Error::invalid(
                "federation",
                "1000 trust domains are the most",
            ));
        }
        let profile = endpoint.map(Endpoint::profile);
        let id = profile.and_then(|profile| profile.endpoint_id());
        let now = int(now_ms());
        sqlx::query(
            "INSERT INTO federations (trust_domain, url, profile, endpoint_id, bundle, created_ms, fetched_ms, tried_ms, problem)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7, '')
             ON CONFLICT (trust_domain) DO UPDATE SET
                url = $2, profile = $3, endpoint_id = $4, bundle = $5, fetched_ms = $7, problem = ''",
        )
        .bind(trust_domain.as_str())
        .bind(endpoint.map(|endpoint| endpoint.url().to_string()).unwrap_or_default())
        .bind(profile.map(|profile| profile.name()).unwrap_or_default())
        .bind(id.map(ToString::to_string).unwrap_or_default())
        .bind(bundle.map(TrustBundle::to_bytes))
        .bind(now)
        .bind(if bundle.is_some() { now } else { 0 })
        .execute(&mut **change)
        .await?;
        Ok(())
    }

    fn relationship(&self, row: &AnyRow) -> Result<Relationship, Error> {
        let name: String = row.try_get("trust_domain")?;
        let trust_domain = self.stored(authority::trust_domain(&name))?;
        let (url, profile, id): (String, String, String) = (
            row.try_get("url")?,
            row.try_get("profile")?,
            row.try_get("endpoint_id")?,
        );
        let endpoint = match url.as_str() {
            "" => None,
            url => Some(self.stored(Endpoint::new(url, &profile, &id))?),
        };
        let bundle = match row.try_get::<Option<Vec<u8>>, _>("bundle")? {
            Some(bytes) => Some(Arc::new(self.stored(TrustBundle::from_bytes(&bytes))?)),
            None => None,
        };
        let at = |column| row.try_get::<i64, _>(column).map(uint);
        Ok(Relationship {
            trust_domain,
            endpoint,
            bundle,
            state: FetchState {
                created_ms: at("created_ms")?,
                fetched_ms: at("fetched_ms")?,
                tried_ms: at("tried_ms")?,
                problem: row.try_get("problem")?,
            },
        })
    }
}

/// It was fetched, and brought nothing new.
async fn touch(change: &mut Change, trust_domain: &TrustDomain) -> Result<(), Error> {
    sqlx::query("UPDATE federations SET fetched_ms = $1, tried_ms = $1, problem = '' WHERE trust_domain = $2")
        .bind(int(now_ms()))
        .bind(trust_domain.as_str())
        .execute(&mut **change)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    #[tokio::test]
    async fn b2_a_bundle_is_never_replaced_by_an_earlier_one_or_one_without_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.sqlite");
        Store::create(&path).await.unwrap();
        let store = Store::open(&path).await.unwrap();
        let ours = TrustDomain::new("example.org").unwrap();
        let registry = Registry::new(store, ours, vec![]);
        let theirs = TrustDomain::new("partner.example").unwrap();
        let bundle = |sequence| TrustBundle::new(theirs.clone(), sequence, []).unwrap();
        registry.set_bundle(&bundle(5)).await.unwrap();
        for old in [4, 1, 0] {
            let error = registry.fetched(&bundle(old)).await.unwrap_err();
            assert!(error.to_string().contains("bundle set"), "{error}");
        }
        assert_eq!(registry.fetched(&bundle(5)).await.unwrap(), Fetched::Same);
        assert_eq!(registry.fetched(&bundle(6)).await.unwrap(), Fetched::New);
        let stored = &registry.federations().await.unwrap()[&theirs].bundle;
        assert_eq!(stored.as_ref().unwrap().sequence(), 6);
    }
}
