//! `handfast policy status`, `confirm` and `revert`: what was put in force for a time only.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Args;
use handfast_ca::client::admin::Admin;
use handfast_ca::model::PolicyTrial;
use serde::Serialize;

use super::suffix;
use crate::ca::CaSocket;
use crate::output::{OutputArgs, timestamp};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct ConfirmArgs {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct RevertArgs {
    /// Why; kept in the CA's audit log
    #[arg(long, value_name = "TEXT", value_parser = crate::reason::read)]
    reason: String,
    /// Say what would go back, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// What is on trial, for people and programs.
#[derive(Debug, Serialize)]
pub(super) struct Trial {
    operator: String,
    since: String,
    pub(super) until: String,
    seconds_left: u64,
    policies: Vec<Tried>,
}

#[derive(Debug, Serialize)]
struct Tried {
    key: String,
    /// `goes` or `goes back`.
    unless_confirmed: &'static str,
}

impl From<PolicyTrial> for Trial {
    fn from(trial: PolicyTrial) -> Self {
        let tried = |policy: handfast_ca::model::TriedPolicy| Tried {
            key: policy.name,
            unless_confirmed: if policy.created { "goes" } else { "goes back" },
        };
        Self {
            operator: trial.operator,
            since: timestamp(trial.began_at_ms / 1000),
            until: timestamp(trial.deadline_ms.div_ceil(1000)),
            seconds_left: left(trial.deadline_ms),
            policies: trial.policies.into_iter().map(tried).collect(),
        }
    }
}

/// What `status` and `confirm` say to programs.
#[derive(Serialize)]
struct Report {
    on_trial: Option<Trial>,
}

fn left(deadline_ms: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_millis());
    let left = u128::from(deadline_ms).saturating_sub(now).div_ceil(1000);
    u64::try_from(left).unwrap_or(u64::MAX)
}

/// Why nothing else is applied meanwhile.
pub(super) fn in_the_way(trial: &PolicyTrial) -> String {
    format!(
        "{} of {} wait to be confirmed, {} s more: keep them (`handfast policy confirm`) or put back what was before \
         (`handfast policy revert`) first; nothing was changed",
        match trial.policies.len() {
            1 => "a policy".to_owned(),
            more => format!("{more} policies"),
        },
        trial.operator,
        left(trial.deadline_ms)
    )
}

pub(super) async fn status(args: &StatusArgs, ca: &CaSocket) -> anyhow::Result<()> {
    let trial = ca.connect().await?.policy_trial().await?.map(Trial::from);
    let header = ["POLICY", "UNLESS CONFIRMED", "AT", "PUT IN FORCE BY"];
    let rows: Vec<_> = trial.iter().flat_map(rows).collect();
    if rows.is_empty() && !args.output.is_for_programs() {
        eprintln!("nothing is in force for a time: what there is stays");
        return Ok(());
    }
    args.output
        .print(&Report { on_trial: trial }, &header, rows)
}

fn rows(trial: &Trial) -> impl Iterator<Item = Vec<String>> {
    trial.policies.iter().map(|policy| {
        vec![
            policy.key.clone(),
            policy.unless_confirmed.to_owned(),
            trial.until.clone(),
            trial.operator.clone(),
        ]
    })
}

pub(super) async fn confirm(args: &ConfirmArgs, ca: &CaSocket) -> anyhow::Result<()> {
    let confirmed = Trial::from(ca.connect().await?.confirm_policies().await?);
    let rows: Vec<_> = confirmed
        .policies
        .iter()
        .map(|policy| vec![policy.key.clone(), "stays".to_owned()])
        .collect();
    args.output.print(&confirmed, &["POLICY", "NOW"], rows)
}

pub(super) async fn revert(args: &RevertArgs, ca: &CaSocket) -> anyhow::Result<()> {
    let mut admin = ca.connect().await?;
    let trial = if args.dry_run {
        waiting(&mut admin).await?
    } else {
        let reverted = admin.revert_policies(&args.reason).await;
        reverted.context("nothing was put back")?
    };
    for policy in Trial::from(trial).policies {
        let what = match policy.unless_confirmed {
            "goes" => "deleted",
            _ => "as before",
        };
        outln!("{} {what}{}", policy.key, suffix(args.dry_run));
    }
    Ok(())
}

async fn waiting(admin: &mut Admin) -> anyhow::Result<PolicyTrial> {
    match admin.policy_trial().await? {
        Some(trial) => Ok(trial),
        None => bail!("no policies wait to be confirmed; nothing was changed"),
    }
}
