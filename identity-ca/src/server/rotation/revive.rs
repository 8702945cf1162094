//! At the start: what ended while the server was off is replaced, if the root's key is here.

use crate::audit::{Act, Audit};
use crate::authority::{Authority, Kind, Record};
use crate::registry::Registry;
use crate::rotation::journal::{Rotation, Wish};
use crate::{Error, failpoint, now_ms};

const REASON: &str = "it expired while this server was off";

/// Gives this server an issuing CA and a JWT key in their time. Without the
/// root's key the issuing CA stays as it is: the server starts, signs nothing,
/// and its rotation asks whoever has the key.
pub(in crate::server) async fn revive(
    authority: &Authority,
    registry: &Registry,
    audit: &Audit,
) -> Result<(), Error> {
    for kind in [Kind::Issuing, Kind::Jwt] {
        let authorities = authority.authorities();
        let now = now_ms();
        let ended = authorities
            .active(kind, authority.server())
            .filter(|record| record.not_after_ms <= now);
        let Some(ended) = ended else { continue };
        let Some(made) = successor(authority, kind, now)? else {
            tracing::error!(
                "the issuing CA has expired, and the root's key is not here, or has expired too: nothing is signed until its successor is installed"
            );
            continue;
        };
        failpoint::here("revived-key-written");
        replace(authority, registry, audit, &made, &ended.id).await?;
    }
    Ok(())
}

fn successor(authority: &Authority, kind: Kind, now: u64) -> Result<Option<Record>, Error> {
    if kind == Kind::Jwt {
        return authority.make_jwt_key().map(Some);
    }
    let authorities = authority.authorities();
    let root = authorities
        .active_root()
        .filter(|root| root.not_after_ms > now && authority.has_key(root));
    root.map(|root| authority.make_issuing(root)).transpose()
}

async fn replace(
    authority: &Authority,
    registry: &Registry,
    audit: &Audit,
    made: &Record,
    ended: &str,
) -> Result<(), Error> {
    audit.ready().await?;
    let wish = Wish {
        by: "ca".to_owned(),
        reason: REASON.to_owned(),
    };
    let mut change = registry.store().begin().await?;
    let replaced = Rotation::replace_expired(&mut change, made, now_ms(), &wish).await?;
    if !replaced {
        authority.discard(made);
        return Ok(());
    }
    change.commit().await?;
    let mut reader = registry.store().reader().acquire().await?;
    authority.adopt(Record::all(&mut reader).await?)?;
    tracing::warn!(kind = made.kind.name(), "{REASON}: there is a new one");
    let act = Act::done("rotation.revive", "ca", made.kind.name())
        .with("authority", &*made.id)
        .with("replaces", ended)
        .with("reason", REASON);
    audit.record(vec![act]).await
}
