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

/// How a pod stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInfo {
    /// The addresses that its gates know.
    pub addresses: Vec<IpAddr>,
    /// Who it is; none while no entry is known for it.
    pub spiffe_id: Option<String>,
}

/// A request of the plugin.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum CniRequest {
    /// Put gates on the node's side of a pod's link. Answer: [`PodInfo`].
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
    /// How does it stand? Answer: [`PodInfo`], or null for one that is not attached.
    Look {
        /// Which container and interface.
        attachment: Attachment,
        /// The pod's UID, as for a removal.
        #[serde(default)]
        pod: Option<String>,
    },
    /// Who is it? Answered as soon as an identity is in force for it, or when the time is over. Answer: as to `Look`.
    Identify {
        /// Which container and interface.
        attachment: Attachment,
        /// For so long.
        seconds: u16,
    },
    /// Forget the attachments that are not among these. Answer: how many there were.
    Collect {
        /// Those that the runtime knows.
        valid: Vec<Attachment>,
    },
    /// Would an ADD work? Answer: null, or an error that says why not.
    Ready,
}
