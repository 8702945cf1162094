//! Policies on trial: what was before is kept in the transaction that replaces it, and comes back unless somebody confirms
//! in time. One trial at a time, and meanwhile no operator changes policies otherwise: what would come back, and what
//! would be kept, stays plain.

use std::time::Duration;

use super::Registry;
use super::policies::{PolicyOrder, check, delete_and_commit, put, put_text, take_out};
use super::store::{Change, Section, int, uint};
use crate::model::{PolicyDocument, PolicyTrial, TriedPolicy};
use crate::{Error, now_ms};

/// Shorter, nobody could confirm; longer, nobody would remember.
const WITHIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(86_400));
/// Names in a refusal.
const NAMED: usize = 3;

/// What begins a trial.
#[derive(Debug, Clone)]
pub(crate) struct TrialOrder {
    /// How long it waits to be confirmed.
    pub(crate) within: Duration,
    /// Who begins it.
    pub(crate) operator: String,
}

impl TrialOrder {
    fn check(&self) -> Result<(), Error> {
        let (least, most) = WITHIN;
        if (least..=most).contains(&self.within) {
            return Ok(());
        }
        Err(Error::invalid(
            "time to confirm",
            "1 s to 1 day; nothing was changed",
        ))
    }
}

impl Registry {
    /// Puts an operator's documents: all or none. With a trial they go back by themselves unless it is confirmed; if
    /// nothing has changed, none begins.
    pub(crate) async fn apply_policies(
        &self,
        orders: &[PolicyOrder],
        trial: Option<&TrialOrder>,
    ) -> Result<Vec<PolicyDocument>, Error> {
        orders.iter().try_for_each(check)?;
        trial.map_or(Ok(()), TrialOrder::check)?;
        let mut change = self.store.begin().await?;
        refuse_meanwhile(&mut change).await?;
        if trial.is_some() {
            for order in orders {
                remember(&mut change, &order.name).await?;
            }
        }
        let (documents, changed) = put(&mut change, orders).await?;
        if !changed {
            return Ok(documents);
        }
        let number = change.number(Section::Policies).await?;
        if let Some(trial) = trial {
            begin(&mut change, number, trial).await?;
        }
        change.commit().await?;
        Ok(documents)
    }

    /// Deletes documents that operators have put: all or none.
    pub(crate) async fn withdraw_policies(
        &self,
        names: &[String],
    ) -> Result<Vec<PolicyDocument>, Error> {
        let mut change = self.store.begin().await?;
        refuse_meanwhile(&mut change).await?;
        delete_and_commit(change, names).await
    }

    /// What is on trial.
    pub(crate) async fn trial(&self) -> Result<Option<PolicyTrial>, Error> {
        let mut reading = self.store.begin_reading().await?;
        let trial = read(&mut reading).await?;
        reading.commit().await?;
        Ok(trial)
    }

    /// Keeps what is on trial.
    pub(crate) async fn confirm_trial(&self) -> Result<PolicyTrial, Error> {
        let mut change = self.store.begin().await?;
        let trial = read(&mut change).await?.ok_or_else(none)?;
        end(&mut change).await?;
        change.commit().await?;
        Ok(trial)
    }

    /// Puts back what was before the trial of that number, or of any; none if it has ended meanwhile.
    pub(crate) async fn revert_trial(
        &self,
        number: Option<u64>,
    ) -> Result<Option<PolicyTrial>, Error> {
        let mut change = self.store.begin().await?;
        let trial = read(&mut change).await?;
        let Some(trial) = trial.filter(|trial| number.is_none_or(|number| trial.number == number))
        else {
            return Ok(None);
        };
        let rows: Vec<(String, String)> = sqlx::query_as("SELECT name, text FROM policy_before")
            .fetch_all(&mut *change)
            .await?;
        for (name, text) in rows {
            if text.is_empty() {
                take_out(&mut change, &name).await?;
            } else {
                put_text(&mut change, &name, &text).await?;
            }
        }
        end(&mut change).await?;
        change.number(Section::Policies).await?;
        change.commit().await?;
        Ok(Some(trial))
    }
}

/// Says that there is nothing to confirm or to put back.
pub(crate) fn none() -> Error {
    Error::Conflict {
        what: "policies",
        name: "on trial".to_owned(),
        problem: "there are none: what was has been confirmed, or has gone back at its deadline (`handfast ca audit --act \
                  policy.revert` says so); nothing was changed"
            .to_owned(),
    }
}

/// Keeps what a name stands for now.
async fn remember(change: &mut Change, name: &str) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO policy_before VALUES ($1, coalesce((SELECT text FROM policies WHERE name = $1), ''))
         ON CONFLICT (name) DO NOTHING",
    )
    .bind(name)
    .execute(&mut **change)
    .await?;
    Ok(())
}

async fn begin(change: &mut Change, number: u64, trial: &TrialOrder) -> Result<(), Error> {
    // What stayed as it was is not on trial.
    sqlx::query(
        "DELETE FROM policy_before WHERE text = (SELECT text FROM policies WHERE policies.name = policy_before.name)",
    )
    .execute(&mut **change)
    .await?;
    let now = now_ms();
    let within = u64::try_from(trial.within.as_millis()).unwrap_or(u64::MAX);
    sqlx::query("INSERT INTO policy_trial VALUES (1, $1, $2, $3, $4)")
        .bind(int(number))
        .bind(int(now))
        .bind(int(now.saturating_add(within)))
        .bind(&trial.operator)
        .execute(&mut **change)
        .await?;
    Ok(())
}

async fn end(change: &mut Change) -> Result<(), Error> {
    sqlx::query("DELETE FROM policy_trial")
        .execute(&mut **change)
        .await?;
    sqlx::query("DELETE FROM policy_before")
        .execute(&mut **change)
        .await?;
    Ok(())
}

async fn read(change: &mut Change) -> Result<Option<PolicyTrial>, Error> {
    let row: Option<(i64, i64, i64, String)> =
        sqlx::query_as("SELECT number, began_ms, deadline_ms, operator FROM policy_trial")
            .fetch_optional(&mut **change)
            .await?;
    let Some((number, began, deadline, operator)) = row else {
        return Ok(None);
    };
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT name, text FROM policy_before ORDER BY name")
            .fetch_all(&mut **change)
            .await?;
    let tried = |(name, text): (String, String)| TriedPolicy {
        name,
        created: text.is_empty(),
    };
    Ok(Some(PolicyTrial {
        number: uint(number),
        began_at_ms: uint(began),
        deadline_ms: uint(deadline),
        operator,
        policies: rows.into_iter().map(tried).collect(),
    }))
}

/// While policies are on trial operators leave all of them alone.
async fn refuse_meanwhile(change: &mut Change) -> Result<(), Error> {
    let Some(trial) = read(change).await? else {
        return Ok(());
    };
    let names: Vec<&str> = trial
        .policies
        .iter()
        .take(NAMED)
        .map(|policy| policy.name.as_str())
        .collect();
    let more = trial.policies.len().saturating_sub(NAMED);
    let mut name = names.join(" ");
    if more > 0 {
        name.push_str(&format!(" and {more} more"));
    }
    let left = trial.deadline_ms.saturating_sub(now_ms()).div_ceil(1000);
    Err(Error::Conflict {
        what: "policies on trial",
        name,
        problem: format!(
            "{} put them in force, and in {left} s they go back by themselves; keep them (`handfast policy confirm`) or put \
             back what was before (`handfast policy revert`) first; nothing was changed",
            trial.operator
        ),
    })
}
