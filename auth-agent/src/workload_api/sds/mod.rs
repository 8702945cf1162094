//! Envoy's secret discovery (SDS v3): the same identities for a proxy, as it wants them.
//!
//! A proxy names what it wants: a SPIFFE ID or `default` for a certificate with its key; `ROOTCA` for this trust
//! domain's CAs; a trust domain, or `ALL`, for a verifier that takes a certificate only from the CAs of the trust
//! domain in its SPIFFE ID. What it may not have yet is sent when it may.

mod delta;
mod secret;
mod session;
mod world;

use std::pin::Pin;

use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use self::delta::Delta;
use self::session::{Session, run};
use self::world::World;
use super::caller::Callers;
use super::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use super::proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use super::spiffe::counted;

/// The service.
#[derive(Clone)]
pub(super) struct Sds {
    callers: Callers,
}

impl Sds {
    pub(super) fn new(callers: Callers) -> Self {
        Self { callers }
    }

    async fn stream<S: Session>(
        &self,
        method: &'static str,
        request: Request<Streaming<S::Request>>,
    ) -> Result<Response<Responses<S::Response>>, Status> {
        let begun = async {
            let workload = self.callers.attest(&request).await?;
            self.callers.states(workload, method).await
        };
        let (first, states) = counted(method, begun.await)?;
        let responses = run::<S>(request.into_inner(), first, states);
        Ok(Response::new(Box::pin(responses)))
    }

    async fn fetch(&self, request: Request<DiscoveryRequest>) -> Result<DiscoveryResponse, Status> {
        let workload = self.callers.attest(&request).await?;
        let (material, _states) = self.callers.states(workload, "FetchSecrets").await?;
        let mut world = World::default();
        world.request(request.into_inner())?;
        world
            .response(&material)?
            .ok_or_else(|| Status::permission_denied("no such secret for this workload"))
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type StreamSecretsStream = Responses<DiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        self.stream::<World>("StreamSecrets", request).await
    }

    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        self.stream::<Delta>("DeltaSecrets", request).await
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let result = self.fetch(request).await;
        counted("FetchSecrets", result).map(Response::new)
    }
}
