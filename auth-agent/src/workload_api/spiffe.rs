//! The SPIFFE Workload API: five calls, each with the security header and by a process that is attested.

use std::pin::Pin;

use futures::Stream;
use handfast_ca::jwt;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use spiffe::SpiffeId;
use tonic::{Code, Request, Response, Status};

use super::caller::Callers;
use super::proto::spiffe_workload_api_server::SpiffeWorkloadApi;
use super::proto::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest,
    X509svidResponse,
};
use super::responses::Said;
use super::{JwtError, Material, metrics, responses};

/// W-7. No browser can be made to send it.
const SECURITY_HEADER: &str = "workload.spiffe.io";
/// Audiences of one JWT-SVID.
const MAX_AUDIENCES: usize = 32;
/// One audience, in bytes.
const MAX_AUDIENCE: usize = 2048;

/// Lets only calls with the security header through (W-7).
pub(super) fn check_header(request: Request<()>) -> Result<Request<()>, Status> {
    match request.metadata().get(SECURITY_HEADER) {
        Some(value) if value == "true" => Ok(request),
        _ => Err(Status::invalid_argument(format!(
            "the call lacks the metadata {SECURITY_HEADER}: true"
        ))),
    }
}

/// The service.
#[derive(Clone)]
pub(super) struct WorkloadApi {
    callers: Callers,
}

impl WorkloadApi {
    pub(super) fn new(callers: Callers) -> Self {
        Self { callers }
    }

    /// A stream of what `render` makes of the caller's states.
    async fn stream<R, T>(
        &self,
        method: &'static str,
        request: &Request<R>,
        render: impl Fn(&Material) -> T + Send + 'static,
    ) -> Result<Response<Responses<T>>, Status>
    where
        T: Said,
    {
        let begun = async {
            let workload = self.callers.attest(request).await?;
            self.callers.states(workload, method).await
        };
        let (first, states) = counted(method, begun.await)?;
        let responses = states.responses(render(&first), render);
        Ok(Response::new(Box::pin(responses)))
    }

    async fn jwt_svids(&self, request: Request<JwtsvidRequest>) -> Result<JwtsvidResponse, Status> {
        let workload = self.callers.attest(&request).await?;
        let JwtsvidRequest {
            audience,
            spiffe_id,
        } = request.into_inner();
        check_audiences(&audience)?;
        let wanted = match spiffe_id.as_str() {
            "" => None,
            text => Some(SpiffeId::new(text).map_err(|error| {
                Status::invalid_argument(format!("spiffe_id is no SPIFFE ID: {error}"))
            })?),
        };
        // An identity that the workload does not have is refused before anybody is asked to sign.
        let (material, states) = self.callers.states(workload, "FetchJWTSVID").await?;
        if let Some(wanted) = &wanted
            && !material.svids.iter().any(|svid| svid.spiffe_id == *wanted)
        {
            return Err(Status::permission_denied(JwtError::NotEntitled.to_string()));
        }
        let source = self.callers.source();
        let svids = source.jwt_svids(&states.workload, audience, wanted).await;
        let svids = svids.map_err(|error| match error {
            JwtError::NotEntitled => Status::permission_denied(error.to_string()),
            JwtError::Invalid(_) => Status::invalid_argument(error.to_string()),
            JwtError::Unavailable(_) => Status::unavailable(error.to_string()),
        })?;
        Ok(responses::jwt_svids(&svids))
    }

    async fn validate(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<ValidateJwtsvidResponse, Status> {
        let workload = self.callers.attest(&request).await?;
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        for (field, value) in [("audience", &audience), ("svid", &svid)] {
            if value.is_empty() {
                return Err(Status::invalid_argument(format!("{field} is missing")));
            }
        }
        let (material, _states) = self.callers.states(workload, "ValidateJWTSVID").await?;
        let bundle = |trust_domain: &_| material.bundles.of(trust_domain);
        // By the clock that the CA keeps right: one that was set back brings no token back.
        let source = self.callers.source();
        let verified = jwt::verify(&svid, &audience, bundle, source.now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if source.denies(&verified.spiffe_id) {
            return Err(Status::invalid_argument(format!(
                "{} is revoked",
                verified.spiffe_id
            )));
        }
        Ok(ValidateJwtsvidResponse {
            spiffe_id: verified.spiffe_id.to_string(),
            claims: Some(fields(verified.claims)),
        })
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Responses<X509svidResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.stream("FetchX509SVID", &request, responses::x509_svids)
            .await
    }

    type FetchX509BundlesStream = Responses<X509BundlesResponse>;

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.stream("FetchX509Bundles", &request, responses::x509_bundles)
            .await
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let result = self.jwt_svids(request).await;
        counted("FetchJWTSVID", result).map(Response::new)
    }

    type FetchJWTBundlesStream = Responses<JwtBundlesResponse>;

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.stream("FetchJWTBundles", &request, responses::jwt_bundles)
            .await
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let result = self.validate(request).await;
        counted("ValidateJWTSVID", result).map(Response::new)
    }
}

/// Counts how a call began.
pub(super) fn counted<T>(method: &'static str, result: Result<T, Status>) -> Result<T, Status> {
    let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
    metrics::call(method, code);
    result
}

/// W-12.
fn check_audiences(audiences: &[String]) -> Result<(), Status> {
    let problem = if audiences.is_empty() || audiences.iter().any(String::is_empty) {
        "audience is missing".to_owned()
    } else if audiences.len() > MAX_AUDIENCES {
        format!("more than {MAX_AUDIENCES} audiences")
    } else if audiences
        .iter()
        .any(|audience| audience.len() > MAX_AUDIENCE)
    {
        format!("an audience is longer than {MAX_AUDIENCE} bytes")
    } else {
        return Ok(());
    };
    Err(Status::invalid_argument(problem))
}

/// JSON as protobuf has it. JSON of a verified token is no deeper than its parser allows.
fn fields(object: serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct {
        fields: object
            .into_iter()
            .map(|(name, claim)| (name, value(claim)))
            .collect(),
    }
}

fn value(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(truth) => Kind::BoolValue(truth),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(values) => Kind::ListValue(ListValue {
            values: values.into_iter().map(value).collect(),
        }),
        Json::Object(object) => Kind::StructValue(fields(object)),
    };
    Value { kind: Some(kind) }
}
