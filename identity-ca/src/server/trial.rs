//! Policies on trial go back when their time is over, whichever server is there then; operators look at them, keep them, or
//! put back what was before at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::operator::check_reason;
use super::state::State;
use crate::audit::Act;
use crate::model::{PolicyTrial, Role};
use crate::proto::policy_trials_server::PolicyTrials;
use crate::registry::no_trial;
use crate::{Error, now_ms, proto};

/// While a trial is under way: clocks may jump, and machines sleep.
const LOOK: Duration = Duration::from_secs(1);
/// Policies of one line of the audit log.
const NAMES: usize = 64;

pub(super) struct Service {
    state: Arc<State>,
}

pub(super) fn service(state: Arc<State>) -> Service {
    Service { state }
}

#[tonic::async_trait]
impl PolicyTrials for Service {
    async fn show_trial(
        &self,
        request: Request<proto::ShowTrialRequest>,
    ) -> Result<Response<proto::ShowTrialReply>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        let trial = self.state.registry.trial().await?;
        Ok(Response::new(proto::ShowTrialReply {
            trial: trial.map(Into::into),
        }))
    }

    async fn confirm_trial(
        &self,
        request: Request<proto::ConfirmTrialRequest>,
    ) -> Result<Response<proto::PolicyTrial>, Status> {
        let by = self.state.operator(&request, Role::Registrar)?;
        let confirmed = self
            .state
            .change(|state| async move { state.registry.confirm_trial().await })
            .await;
        let subject = confirmed.as_ref().map_or_else(|_| String::new(), names);
        let confirmed = self
            .state
            .conclude("policy.confirm", &by, subject, confirmed, |act, _| act)
            .await?;
        Ok(Response::new(confirmed.into()))
    }

    async fn revert_trial(
        &self,
        request: Request<proto::RevertTrialRequest>,
    ) -> Result<Response<proto::PolicyTrial>, Status> {
        let by = self.state.operator(&request, Role::Registrar)?;
        let reason = request.into_inner().reason;
        check_reason(&reason)?;
        let reverted = self
            .state
            .change(|state| async move {
                let reverted = state.registry.revert_trial(None).await?;
                reverted.ok_or_else(no_trial)
            })
            .await;
        let subject = reverted.as_ref().map_or_else(|_| String::new(), names);
        let reverted = self
            .state
            .conclude("policy.revert", &by, subject, reverted, |act, _| {
                act.with("reason", reason)
            })
            .await?;
        Ok(Response::new(reverted.into()))
    }
}

/// Puts back what nobody has confirmed, for as long as the server runs. A deadline that passed while no server ran is seen
/// at once.
pub(super) async fn keep(state: Arc<State>) {
    let mut snapshots = state.snapshot.subscribe();
    // By this process's clock: one that is set back meanwhile makes no trial longer.
    let mut due: Option<(u64, Instant)> = None;
    loop {
        let seen = snapshots.borrow_and_update().revisions.policies;
        match look(&state, &mut due).await {
            Ok(true) => {}
            // A trial begins with a change of the policies.
            Ok(false) => {
                let changed = snapshots.wait_for(|now| now.revisions.policies != seen);
                if changed.await.is_err() {
                    return;
                }
            }
            Err(error) => {
                state.notice(&error);
                tracing::error!(%error, "policies on trial cannot be looked after; trying again");
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

/// Is there a trial? One whose time is over is ended; for another one it waits a moment.
async fn look(state: &Arc<State>, due: &mut Option<(u64, Instant)>) -> Result<bool, Error> {
    let Some(trial) = state.registry.trial().await? else {
        *due = None;
        return Ok(false);
    };
    let left = Duration::from_millis(trial.deadline_ms.saturating_sub(now_ms()));
    let end = match *due {
        Some((number, end)) if number == trial.number => end,
        _ => Instant::now() + left,
    };
    *due = Some((trial.number, end));
    if !left.is_zero() && Instant::now() < end {
        tokio::time::sleep(LOOK.min(left)).await;
        return Ok(true);
    }
    let number = trial.number;
    let reverted = state
        .change(move |state| async move { state.registry.revert_trial(Some(number)).await })
        .await?;
    if let Some(reverted) = reverted {
        let act = Act::done("policy.revert", "ca", names(&reverted))
            .with("reason", "nobody confirmed them in time")
            .with("put_by", reverted.operator.as_str());
        state.audit.record(vec![act]).await?;
        tracing::warn!(policies = %names(&reverted), "nobody confirmed these policies in time; what was before is in force again");
    }
    Ok(false)
}

/// As many names as one line of the log takes.
fn names(trial: &PolicyTrial) -> String {
    let names = trial.policies.iter().map(|policy| policy.name.as_str());
    names.take(NAMES).collect::<Vec<_>>().join(" ")
}
