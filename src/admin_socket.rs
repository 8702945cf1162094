//! Where a command finds the running agent.

use std::path::PathBuf;

use clap::Args;
use handfast_agent::admin::{Client, ClientError, Request};
use serde::de::DeserializeOwned;

/// The option of every command that asks the agent.
#[derive(Clone, Debug, Args)]
pub struct AdminSocket {
    /// The agent's administrative socket
    #[arg(
        long,
        env = "HANDFAST_ADMIN_SOCKET",
        default_value = "/run/handfast/admin.sock",
        value_name = "PATH"
    )]
    pub admin_socket: PathBuf,
}

impl AdminSocket {
    /// Opens a conversation.
    pub async fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.admin_socket).await
    }

    /// Asks one thing.
    pub async fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        self.connect().await?.ask(request).await
    }
}
