//! The plugin's commands. Each ends within a bound, changes nothing when it fails, and says why in the form that
//! runtimes read.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::error::{CniError, NEWEST};
use super::input::{Attachment, Command, NetworkConfig, VERSIONS, Variables};
use super::request::{CniRequest, PodInfo};
use crate::admin::{Client, ClientError, Request};

/// For one answer of the agent: it may be busy with other pods.
const PATIENCE: Duration = Duration::from_secs(20);

/// Does what the variables say with the configuration on `input`; returns what goes to standard output, if anything.
///
/// # Errors
/// In the form that goes to standard output in place of a result, with exit status 1.
pub async fn run(
    variables: impl IntoIterator<Item = (String, String)>,
    input: impl Read,
) -> Result<Option<Value>, CniError> {
    let variables = Variables::of(variables);
    let command = Command::read(&variables.needed("CNI_COMMAND")?)?;
    if command == Command::Version {
        return Ok(Some(json!({
            "cniVersion": NEWEST,
            "supportedVersions": VERSIONS,
        })));
    }
    let config = NetworkConfig::read(input)?;
    let version = config.cni_version.clone();
    let done = match command {
        Command::Add => add(&variables, config).await.map(Some),
        Command::Del => delete(&variables, &config).await.map(|()| None),
        Command::Check => check(&variables, &config).await.map(|()| None),
        Command::Gc => collect(&config).await.map(|()| None),
        Command::Status | Command::Version => status(&config).await.map(|()| None),
    };
    done.map_err(|error| error.in_version(&version))
}

async fn add(variables: &Variables, config: NetworkConfig) -> Result<Value, CniError> {
    let attachment = Attachment::read(variables)?;
    let request = CniRequest::Add {
        netns: variables.netns()?,
        pod: variables.pod(&attachment)?,
        addresses: config.addresses()?,
        attachment: attachment.clone(),
    };
    let mut agent = Agent::connect(&config.admin_socket)
        .await
        .map_err(CniError::later)?;
    let attached: PodInfo = agent.ask(request).await?;
    if attached.spiffe_id.is_none()
        && let Err(error) = identified(&mut agent, &attachment, &config).await
    {
        // A pod that nobody knows would be judged by rules for strangers: it must not start.
        let gone = CniRequest::Delete {
            attachment,
            pod: None,
        };
        let _: bool = agent.ask(gone).await?;
        return Err(error);
    }
    config
        .prev_result
        .ok_or_else(|| CniError::config("prevResult is missing"))
}

/// Waits until the pod has an identity.
async fn identified(
    agent: &mut Agent,
    attachment: &Attachment,
    config: &NetworkConfig,
) -> Result<(), CniError> {
    let seconds = config.identity_timeout_seconds;
    if seconds == 0 {
        return Ok(());
    }
    let request = CniRequest::Identify {
        attachment: attachment.clone(),
        seconds,
    };
    let patience = PATIENCE + config.identity_timeout();
    let found: Option<PodInfo> = agent.ask_within(patience, request).await?;
    let found =
        found.ok_or_else(|| CniError::later("the pod's namespace went while it was attached"))?;
    if found.spiffe_id.is_some() {
        return Ok(());
    }
    Err(CniError::later(format!(
        "the CA has registered no identity for this pod within {seconds} s: is it reached (handfast status), and does it follow this cluster?"
    )))
}

/// Without an agent this succeeds: its gates stand, nobody else gets the address through them, and the agent takes them
/// away when it comes back and finds the namespace gone.
async fn delete(variables: &Variables, config: &NetworkConfig) -> Result<(), CniError> {
    let attachment = Attachment::read(variables)?;
    let Ok(mut agent) = Agent::connect(&config.admin_socket).await else {
        return Ok(());
    };
    let pod = uid(variables, &attachment);
    let _: bool = agent.ask(CniRequest::Delete { attachment, pod }).await?;
    Ok(())
}

async fn check(variables: &Variables, config: &NetworkConfig) -> Result<(), CniError> {
    let attachment = Attachment::read(variables)?;
    let addresses = config.addresses()?;
    let mut agent = Agent::connect(&config.admin_socket)
        .await
        .map_err(CniError::later)?;
    let pod = uid(variables, &attachment);
    let found: Option<PodInfo> = agent.ask(CniRequest::Look { attachment, pod }).await?;
    let found =
        found.ok_or_else(|| CniError::unknown_container("the agent has no gates for it"))?;
    if let Some(missing) = addresses
        .iter()
        .find(|address| !found.addresses.contains(address))
    {
        return Err(CniError::refused(format!(
            "{missing} is no address that its gates know ({:?})",
            found.addresses
        )));
    }
    Ok(())
}

/// The pod's UID, where the runtime says it: not every one does so at the end.
fn uid(variables: &Variables, attachment: &Attachment) -> Option<String> {
    variables.pod(attachment).ok().map(|pod| pod.uid)
}

async fn collect(config: &NetworkConfig) -> Result<(), CniError> {
    let valid = config.valid()?;
    let mut agent = Agent::connect(&config.admin_socket)
        .await
        .map_err(CniError::later)?;
    let _: usize = agent.ask(CniRequest::Collect { valid }).await?;
    Ok(())
}

async fn status(config: &NetworkConfig) -> Result<(), CniError> {
    let mut agent = Agent::connect(&config.admin_socket)
        .await
        .map_err(CniError::not_available)?;
    let ready: Result<Value, CniError> = agent.ask(CniRequest::Ready).await;
    ready.map_err(|error| CniError::not_available(error.details))?;
    Ok(())
}

/// The agent of this node, every answer within a bound.
struct Agent(Client);

impl Agent {
    async fn connect(socket: &Path) -> Result<Self, String> {
        match tokio::time::timeout(PATIENCE, Client::connect(socket)).await {
            Ok(Ok(client)) => Ok(Self(client)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no agent answers at {}", socket.display())),
        }
    }

    async fn ask<T: DeserializeOwned>(&mut self, request: CniRequest) -> Result<T, CniError> {
        self.ask_within(PATIENCE, request).await
    }

    async fn ask_within<T: DeserializeOwned>(
        &mut self,
        patience: Duration,
        request: CniRequest,
    ) -> Result<T, CniError> {
        let asked = tokio::time::timeout(patience, self.0.ask(&Request::Cni(request))).await;
        let answer = asked.map_err(|_| CniError::later("the agent did not answer in time"))?;
        answer.map_err(|error| match error {
            ClientError::Refused(why) => CniError::refused(why),
            other => CniError::later(other.to_string()),
        })
    }
}
