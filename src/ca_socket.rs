//! How an operator reaches the CA: by its socket on the same machine, or from afar with an SVID.

use std::path::PathBuf;

use clap::Args;
use handfast_ca::client::admin::{Admin, DEFAULT_SOCKET};
use handfast_ca::client::operators::Remote;

/// The option that names the CA's socket.
#[derive(Clone, Debug, Args)]
pub struct SocketPath {
    /// The CA's administrative socket
    #[arg(long, env = "HANDFAST_CA_SOCKET", global = true, default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub admin_socket: PathBuf,
}

/// The options of every command that asks the running CA.
#[derive(Clone, Debug, Args)]
pub struct CaSocket {
    #[command(flatten)]
    pub socket: SocketPath,
    /// Ask the CA at this address instead, as the operator whose SVID is shown
    #[arg(long, env = "HANDFAST_CA", global = true, value_name = "HOST:PORT", requires_all = ["svid", "key", "bundle"])]
    ca: Option<String>,
    /// The operator's SVID with its chain (PEM)
    #[arg(
        long,
        env = "HANDFAST_SVID",
        global = true,
        value_name = "FILE",
        requires = "ca"
    )]
    svid: Option<PathBuf>,
    /// The SVID's key (PEM, PKCS#8)
    #[arg(
        long,
        env = "HANDFAST_SVID_KEY",
        global = true,
        value_name = "FILE",
        requires = "ca"
    )]
    key: Option<PathBuf>,
    /// The roots of the trust domain (PEM), as `bundle show` prints them
    #[arg(
        long,
        env = "HANDFAST_BUNDLE",
        global = true,
        value_name = "FILE",
        requires = "ca"
    )]
    bundle: Option<PathBuf>,
}

impl CaSocket {
    /// Opens a conversation.
    pub async fn connect(&self) -> Result<Admin, handfast_ca::Error> {
        match (&self.ca, &self.svid, &self.key, &self.bundle) {
            (Some(address), Some(svid), Some(key), Some(bundle)) => {
                let remote = Remote::read(svid, key, bundle)?;
                Admin::connect_remote(address, &remote).await
            }
            _ => Admin::connect(&self.socket.admin_socket).await,
        }
    }
}
