//! What the plugin asks of the agent.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::input::Attachment;

/// The pod that an endpoint belongs to, as the runtime named it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The attachment that it was made for; none for a pod that ran before the agent did.
    #[serde(default)]
    pub attachment: Option<Attachment>,
}

/// A request of the plugin.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum CniRequest {
    /// Put gates on the node's side of a pod's link. Answer: [`crate::admin::EndpointInfo`].
    Add {
        /// Which container and interface.
        attachment: Attachment,
        /// Its network namespace.
        netns: PathBuf,
        /// Whose it is.
        pod: Pod,
        /// What the plugins before gave it; its interface must have all of them.
        addresses: Vec<IpAddr>,
    },
    /// Take them away; nothing to do is no error. Answer: whether there was something.
    Delete {
        /// Which container and interface.
        attachment: Attachment,
        /// The pod's UID: one that ran before the agent did has gates, but no attachment.
        #[serde(default)]
        pod: Option<String>,
    },
    /// How does it stand? Answer: [`crate::admin::EndpointInfo`], or null for one that is not attached.
    Look {
        /// Which container and interface.
        attachment: Attachment,
        /// The pod's UID, as for a removal.
        #[serde(default)]
        pod: Option<String>,
    },
    /// Forget the attachments that are not among these. Answer: how many there were.
    Collect {
        /// Those that the runtime knows.
        valid: Vec<Attachment>,
    },
    /// Would an ADD work? Answer: null, or an error that says why not.
    Ready,
}
