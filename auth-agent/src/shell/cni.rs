//! What the CNI plugin asks, done: pods' links are gated before the pods start, and let go when they end.

use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use super::RunError;
use super::agent::Agent;
use super::requests::to_value;
use crate::cni::{self, Attachment, CniRequest, Installed, Pod};
use crate::config::AgentConfig;
use crate::endpoint::{Endpoint, NamespaceName};

/// Where runtimes keep pods' network namespaces: one folder by two names.
const NAMESPACES: [&str; 2] = ["/run/netns", "/var/run/netns"];
/// Of a pod's name in an endpoint's, and of its container's ID: within what an endpoint's name may have.
const SHOWN_NAME: usize = 50;
const SHOWN_ID: usize = 12;

/// Puts the plugin's program where the runtime finds it.
pub(super) fn place_program(config: &AgentConfig) -> Result<(), RunError> {
    let Some(place) = &config.cni else {
        return Ok(());
    };
    cni::place_program(&place.programs)
        .map(drop)
        .map_err(RunError::io("put the CNI plugin among the runtime's"))
}

/// Takes the plugin out of the runtime's configuration, so that pods start without an agent again.
pub(super) fn take_plugin_away(config: &AgentConfig) -> Result<Vec<String>, RunError> {
    let Some(place) = &config.cni else {
        return Ok(Vec::new());
    };
    let lists = cni::remove(&place.configurations)?;
    cni::remove_program(&place.programs).map_err(RunError::io("take the CNI plugin away"))?;
    Ok(lists
        .iter()
        .map(|list| format!("the CNI plugin in {}", list.display()))
        .collect())
}

impl Agent {
    /// Keeps the plugin in the runtime's configuration: a CNI that writes it anew takes the plugin out.
    pub(super) fn keep_plugin(&mut self) {
        let Some(place) = &self.config.cni else {
            return;
        };
        match cni::install(&place.configurations, &self.config.admin_socket()) {
            Ok((list, Installed::Added)) => {
                tracing::info!(list = %list.display(), "the CNI plugin was put behind the others");
            }
            Ok((_, Installed::Unchanged)) => {}
            Err(error) => self.alarm(format!("CNI plugin: {error}; pods start ungated")),
        }
    }

    /// Answers the plugin.
    pub(super) async fn cni(&mut self, request: CniRequest) -> Result<Value, RunError> {
        match request {
            CniRequest::Add {
                attachment,
                netns,
                pod,
                addresses,
            } => {
                let endpoint = self.cni_add(&attachment, &netns, pod, &addresses).await?;
                to_value(self.pod_info(&endpoint))
            }
            CniRequest::Delete { attachment, pod } => {
                let endpoint = self
                    .attached(&attachment)
                    .or_else(|| self.adopted(pod.as_deref()));
                let name = endpoint.map(|endpoint| endpoint.name.clone());
                if let Some(name) = &name {
                    self.remove_endpoint(name).await?;
                }
                to_value(name.is_some())
            }
            CniRequest::Look { attachment, pod } => {
                let endpoint = self
                    .attached(&attachment)
                    .or_else(|| self.adopted(pod.as_deref()));
                to_value(endpoint.map(|endpoint| self.pod_info(endpoint)))
            }
            CniRequest::Collect { valid } => to_value(self.cni_collect(&valid).await?),
            CniRequest::Ready => self.takes_pods().map(|()| Value::Null),
            // Answered when there is something to say.
            CniRequest::Identify { .. } => Ok(Value::Null),
        }
    }

    async fn cni_add(
        &mut self,
        attachment: &Attachment,
        netns: &Path,
        pod: Pod,
        addresses: &[IpAddr],
    ) -> Result<Endpoint, RunError> {
        self.takes_pods()?;
        if let Some(known) = self.attached(attachment) {
            return Err(RunError::Refused(format!(
                "interface {} of container {} is attached already, as endpoint {}; nothing was changed",
                attachment.interface, attachment.container_id, known.name
            )));
        }
        // Found running a moment before its runtime asks: what it asks for is what it gets.
        if let Some(name) = self.adopted(Some(&pod.uid)).map(|known| known.name.clone()) {
            self.remove_endpoint(&name).await?;
        }
        let name = endpoint_name(&pod.name, &attachment.container_id);
        let netns = namespace(netns)?;
        let endpoint = self.add_pod(name, netns, pod).await?;
        if let Some(missing) = addresses
            .iter()
            .find(|address| !endpoint.addresses.contains(address))
        {
            self.remove_endpoint(&endpoint.name).await?;
            return Err(RunError::Refused(format!(
                "the pod's interface {} has no address {missing}, which the plugins before gave it; it has {:?}",
                endpoint.interface, endpoint.addresses
            )));
        }
        Ok(endpoint)
    }

    /// Forgets attachments that the runtime does not know. Pods that ran before the agent did are not its.
    async fn cni_collect(&mut self, valid: &[Attachment]) -> Result<usize, RunError> {
        let gone = |endpoint: &&Endpoint| {
            let attachment = endpoint
                .pod
                .as_ref()
                .and_then(|pod| pod.attachment.as_ref());
            attachment.is_some_and(|attachment| !valid.contains(attachment))
        };
        let names: Vec<String> = self
            .endpoints
            .all()
            .iter()
            .filter(gone)
            .map(|endpoint| endpoint.name.clone())
            .collect();
        for name in &names {
            self.remove_endpoint(name).await?;
        }
        Ok(names.len())
    }

    pub(super) fn attached(&self, attachment: &Attachment) -> Option<&Endpoint> {
        self.endpoints.all().iter().find(|endpoint| {
            let pod = endpoint.pod.as_ref();
            pod.and_then(|pod| pod.attachment.as_ref()) == Some(attachment)
        })
    }

    /// The endpoint of a pod that ran before the agent did.
    fn adopted(&self, uid: Option<&str>) -> Option<&Endpoint> {
        self.endpoints.all().iter().find(|endpoint| {
            let pod = endpoint.pod.as_ref();
            let pod = pod.filter(|pod| pod.attachment.is_none());
            pod.is_some_and(|pod| Some(pod.uid.as_str()) == uid)
        })
    }

    /// A node that has never heard the CA knows no policies: a pod that started now would be open.
    fn takes_pods(&self) -> Result<(), RunError> {
        if self.knowledge.sequence > 0 {
            return Ok(());
        }
        Err(RunError::Refused(
            "this node has not heard the CA yet, so it knows no policies; pods wait".into(),
        ))
    }
}

/// A name that people recognise, and that no two containers share.
fn endpoint_name(pod: &str, container: &str) -> String {
    let pod: String = pod.chars().take(SHOWN_NAME).collect();
    let container: String = container.chars().take(SHOWN_ID).collect();
    format!("{pod}.{container}")
}

/// The name of a namespace that a runtime gives by its path.
fn namespace(path: &Path) -> Result<NamespaceName, RunError> {
    let folder = path.parent();
    let known =
        folder.is_some_and(|folder| NAMESPACES.iter().any(|known| folder == Path::new(known)));
    let name = path.file_name().and_then(|name| name.to_str());
    match name {
        Some(name) if known => Ok(NamespaceName::new(name)?),
        _ => Err(RunError::Refused(format!(
            "network namespace {} is not under {}, where the agent can find it again",
            path.display(),
            NAMESPACES[0]
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_taken_only_where_it_is_found_again() {
        for path in ["/run/netns/cni-1", "/var/run/netns/cni-1"] {
            assert_eq!(namespace(Path::new(path)).unwrap().as_str(), "cni-1");
        }
        for path in [
            "/proc/1/ns/net",
            "/run/netns",
            "/run/netns/../x",
            "/run/netns/a/b",
            "cni-1",
        ] {
            assert!(namespace(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn an_endpoint_of_a_pod_has_a_name_of_bounded_length() {
        let name = endpoint_name(&"p".repeat(253), &"c".repeat(64));
        assert_eq!(name.len(), SHOWN_NAME + 1 + SHOWN_ID);
        assert_eq!(endpoint_name("web-1", "abc"), "web-1.abc");
    }
}
