//! The CNI plugin: a container runtime runs it after the plugin that makes a pod's interface, and the pod starts only
//! when it has ended well.
//!
//! It is chained (CNI specification 1.0 and 1.1, section 2): it changes nothing of what the plugins before it made, and
//! passes their result on. All it does is ask this node's agent, over its administrative socket, to put gates on the
//! node's side of the pod's link. Without an agent no pod starts: what nobody gates would be open.

mod conflist;
mod error;
mod input;
mod plugin;
mod program;
mod request;
mod running;

pub use conflist::{Installed, PLUGIN, install, remove};
pub use error::CniError;
pub use input::{Attachment, Command, NetworkConfig};
pub use plugin::run;
pub use program::{place_program, remove_program};
pub use request::{CniRequest, Pod, PodInfo};
pub use running::{Running, running};
