//! Policies on trial, as an operator sees them.

use std::time::Duration;

use tonic::transport::Channel;

use super::admin::{Admin, unversioned};
use super::connect::bounded;
use super::{refused, unchanged};
use crate::model::{PolicyDocument, PolicyTrial};
use crate::proto::policy_trials_client::PolicyTrialsClient;
use crate::{Error, proto};

/// Names of all the policies that there can be.
const MAX_TRIAL: usize = 8 << 20;

impl Admin {
    /// Puts policy documents (name, text), all of them or none, that go back by themselves unless they are confirmed
    /// within that time (1 s to 1 day). If they change nothing, nothing is on trial.
    pub async fn try_policies(
        &mut self,
        documents: &[(String, String)],
        within: Duration,
    ) -> Result<Vec<PolicyDocument>, Error> {
        // A CA that knows no trials would put them in force for good.
        self.policy_trial().await?;
        self.put(proto::PutPoliciesRequest {
            policies: unversioned(documents),
            confirm_within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
            ..proto::PutPoliciesRequest::default()
        })
        .await
    }

    /// What is on trial.
    pub async fn policy_trial(&mut self) -> Result<Option<PolicyTrial>, Error> {
        let reply = self
            .trials()
            .show_trial(bounded(proto::ShowTrialRequest {}))
            .await;
        Ok(reply.map_err(refused)?.into_inner().trial.map(Into::into))
    }

    /// Keeps what is on trial.
    pub async fn confirm_policies(&mut self) -> Result<PolicyTrial, Error> {
        let reply = self
            .trials()
            .confirm_trial(bounded(proto::ConfirmTrialRequest {}))
            .await;
        Ok(reply.map_err(unchanged)?.into_inner().into())
    }

    /// Puts back what was before the trial. The reason is kept in the audit log.
    pub async fn revert_policies(&mut self, reason: &str) -> Result<PolicyTrial, Error> {
        let request = proto::RevertTrialRequest {
            reason: reason.to_owned(),
        };
        let reply = self.trials().revert_trial(bounded(request)).await;
        Ok(reply.map_err(unchanged)?.into_inner().into())
    }

    fn trials(&self) -> PolicyTrialsClient<Channel> {
        PolicyTrialsClient::new(self.channel.clone()).max_decoding_message_size(MAX_TRIAL)
    }
}
