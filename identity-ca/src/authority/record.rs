//! What the store knows of roots, issuing CAs and JWT keys: everything but their private keys.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use crate::Error;
use crate::bundle::sha256;
use crate::registry::{int, uint};

/// What an authority signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Issuing CAs.
    Root,
    /// SVIDs.
    Issuing,
    /// JWT-SVIDs.
    Jwt,
}

/// Where an authority is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Standing {
    /// A key that waits for its certificate.
    Requested,
    /// Made known, signs nothing.
    Prepared,
    /// Signs.
    Active,
    /// Signed until its successor was activated; what it signed is good, and replaced.
    Superseded,
    /// Nobody may hang on it any more; its key is destroyed.
    Tainted,
    /// Out of the bundle.
    Retired,
}

/// One authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    /// Empty for roots.
    pub(crate) server: String,
    pub(crate) standing: Standing,
    /// The root's ID; empty for roots and JWT keys.
    pub(crate) parent: String,
    /// Certificate; SubjectPublicKeyInfo of a JWT key; PKCS#10 of what is requested.
    pub(crate) der: Vec<u8>,
    pub(crate) cross_signed: Option<CrossSigned>,
    pub(crate) endorsement: Option<Vec<u8>>,
    /// The name of its private key's file.
    pub(crate) key: String,
    pub(crate) not_before_ms: u64,
    pub(crate) not_after_ms: u64,
    pub(crate) created_ms: u64,
    pub(crate) compromised: bool,
}

/// A root's key, signed by an older root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CrossSigned {
    pub(crate) der: Vec<u8>,
    /// The older root's ID.
    pub(crate) signer: String,
}

/// The ID of a root or an issuing CA: SHA-256 of its certificate, in lower-case hexadecimal.
pub(crate) fn certificate_id(der: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&sha256(der))
}

const COLUMNS: &str = "SELECT id, kind, server, state, parent, der, cross_signed, cross_signer, endorsement, key, not_before_ms, not_after_ms, created_ms, compromised FROM authorities ORDER BY created_ms, id";

impl Record {
    /// All of them, oldest first.
    pub(crate) async fn all(store: &mut AnyConnection) -> Result<Vec<Self>, Error> {
        let rows = sqlx::query(COLUMNS).fetch_all(store).await?;
        rows.iter().map(Self::read).collect()
    }

    /// Writes a new one.
    pub(crate) async fn insert(&self, change: &mut AnyConnection) -> Result<(), Error> {
        let cross = self.cross_signed.as_ref();
        sqlx::query(
            "INSERT INTO authorities (id, kind, server, state, parent, der, cross_signed, cross_signer, endorsement, key, not_before_ms, not_after_ms, created_ms, compromised)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        )
        .bind(&self.id)
        .bind(self.kind.name())
        .bind(&self.server)
        .bind(self.standing.name())
        .bind(&self.parent)
        .bind(&self.der)
        .bind(cross.map(|cross| cross.der.clone()))
        .bind(cross.map_or("", |cross| cross.signer.as_str()))
        .bind(self.endorsement.clone())
        .bind(&self.key)
        .bind(int(self.not_before_ms))
        .bind(int(self.not_after_ms))
        .bind(int(self.created_ms))
        .bind(i64::from(self.compromised))
        .execute(change)
        .await?;
        Ok(())
    }

    /// Takes one out that never came to anything.
    pub(crate) async fn delete(change: &mut AnyConnection, id: &str) -> Result<(), Error> {
        sqlx::query("DELETE FROM authorities WHERE id = $1")
            .bind(id)
            .execute(change)
            .await?;
        Ok(())
    }

    /// Moves one on in its life.
    pub(crate) async fn stand(
        change: &mut AnyConnection,
        id: &str,
        standing: Standing,
    ) -> Result<(), Error> {
        sqlx::query("UPDATE authorities SET state = $1 WHERE id = $2")
            .bind(standing.name())
            .bind(id)
            .execute(change)
            .await?;
        Ok(())
    }

    /// From now on nothing that it has signed is followed.
    pub(crate) async fn compromise(change: &mut AnyConnection, id: &str) -> Result<(), Error> {
        sqlx::query("UPDATE authorities SET compromised = 1 WHERE id = $1")
            .bind(id)
            .execute(change)
            .await?;
        Ok(())
    }

    fn read(row: &AnyRow) -> Result<Self, Error> {
        let kind: String = row.try_get("kind")?;
        let standing: String = row.try_get("state")?;
        let signer: String = row.try_get("cross_signer")?;
        let cross: Option<Vec<u8>> = row.try_get("cross_signed")?;
        let unknown = |what: &str| Error::invalid("authority in the store", what);
        Ok(Self {
            id: row.try_get("id")?,
            kind: Kind::from_name(&kind).ok_or_else(|| unknown(&kind))?,
            server: row.try_get("server")?,
            standing: Standing::from_name(&standing).ok_or_else(|| unknown(&standing))?,
            parent: row.try_get("parent")?,
            der: row.try_get("der")?,
            cross_signed: cross.map(|der| CrossSigned { der, signer }),
            endorsement: row.try_get("endorsement")?,
            key: row.try_get("key")?,
            not_before_ms: uint(row.try_get("not_before_ms")?),
            not_after_ms: uint(row.try_get("not_after_ms")?),
            created_ms: uint(row.try_get("created_ms")?),
            compromised: row.try_get::<i64, _>("compromised")? != 0,
        })
    }
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Issuing => "issuing",
            Self::Jwt => "jwt",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Root, Self::Issuing, Self::Jwt]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

impl Standing {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Superseded => "superseded",
            Self::Tainted => "tainted",
            Self::Retired => "retired",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [
            Self::Requested,
            Self::Prepared,
            Self::Active,
            Self::Superseded,
            Self::Tainted,
            Self::Retired,
        ]
        .into_iter()
        .find(|standing| standing.name() == name)
    }

    /// Its key may still sign, now or later.
    pub(crate) fn needs_key(self) -> bool {
        matches!(
            self,
            Self::Requested | Self::Prepared | Self::Active | Self::Superseded
        )
    }
}
