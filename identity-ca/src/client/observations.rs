//! Flows under rules in audit mode: a node reports them, an operator reads them.

use tonic::transport::Channel;

use super::admin::Admin;
use super::agent::AgentClient;
use super::connect::bounded;
use super::refused;
use crate::model::{NodeObservations, ObservedPair};
use crate::proto::observations_client::ObservationsClient;
use crate::proto::observer_client::ObserverClient;
use crate::{Error, proto};

/// One policy's observations: every pair of every node.
const MAX_LIST: usize = 64 << 20;

impl AgentClient {
    /// Reports what this node saw since its last report: at most 1,024 pairs.
    /// An empty report says that there was nothing.
    pub async fn observe(&self, pairs: &[ObservedPair], lost: u64) -> Result<(), Error> {
        let request = proto::ObserveRequest {
            pairs: pairs.iter().cloned().map(Into::into).collect(),
            lost,
        };
        ObserverClient::new(self.channel.clone())
            .observe(bounded(request))
            .await
            .map_err(refused)?;
        Ok(())
    }
}

impl Admin {
    /// What every node has seen of the present version of a policy.
    pub async fn observations(&mut self, policy: &str) -> Result<Vec<NodeObservations>, Error> {
        let request = proto::ListObservationsRequest {
            policy: policy.to_owned(),
        };
        let mut client: ObservationsClient<Channel> =
            ObservationsClient::new(self.channel.clone()).max_decoding_message_size(MAX_LIST);
        let list = client
            .list_observations(bounded(request))
            .await
            .map_err(refused)?
            .into_inner();
        list.nodes.into_iter().map(TryInto::try_into).collect()
    }
}
