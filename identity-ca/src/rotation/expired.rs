//! An issuing CA or JWT key whose time ended while its server was off: replaced at once, since nothing can be signed
//! until it is, and nobody can be waited for who would have to connect first.

use super::journal::{Order, Rotation, Wish};
use super::plan::{Stage, What};
use crate::Error;
use crate::authority::{Kind, Record, Standing};
use crate::registry::{Change, Section};

impl Rotation {
    /// Puts `made` in the place of what has ended. Activated in the same transaction: the old one can sign nothing, so
    /// that nobody loses anything by it. The plan then goes on like any other; one that stands in the way goes on too,
    /// and the exchange is noted in its journal. Says whether anything was to be done.
    pub(crate) async fn replace_expired(
        change: &mut Change,
        made: &Record,
        now_ms: u64,
        wish: &Wish,
    ) -> Result<bool, Error> {
        let records = Record::all(change).await?;
        let expired = records.iter().find(|record| {
            record.kind == made.kind
                && record.server == made.server
                && record.standing == Standing::Active
                && record.not_after_ms <= now_ms
        });
        let Some(expired) = expired else {
            return Ok(false);
        };
        let (what, section) = match made.kind {
            Kind::Jwt => (What::Jwt, Section::Bundle),
            _ => (What::Issuing, Section::Deny),
        };
        let live = Self::live(change).await?;
        let blocking = live.iter().find(|other| {
            let same = other.plan.what == what && other.server == made.server;
            other.stands_in_the_way(what, &made.server) && (!same || other.plan.can_abort())
        });
        if let Some(other) = blocking {
            let mut made = made.clone();
            made.standing = Standing::Active;
            made.insert(change).await?;
            Record::stand(change, &expired.id, Standing::Superseded).await?;
            change.number(section).await?;
            change.number(Section::Retired).await?;
            other.note(change, "renewed", wish, &[]).await?;
        } else {
            let order = Order {
                what,
                server: made.server.clone(),
                goal: Stage::Revoked,
                compromised: false,
                overtake: true,
                records: vec![made.clone()],
            };
            let begun = Self::begin(change, &order, wish).await?;
            begun.step(change, Stage::Activated, wish, &[]).await?;
        }
        Ok(true)
    }
}
