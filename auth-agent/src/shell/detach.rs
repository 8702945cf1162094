//! Leaving: everything of ours is taken out of the kernel while traffic goes on.

use std::time::Duration;

use handfast_bpf::{HoldDevice, Kernel};
use handfast_encrypt::nat;

use super::agent::Agent;
use super::tunnels::TunnelKeys;
use super::{
    RunError, cni, forwarding, forwarding_path, hosts, snapshot_path, start, tunnel_start,
};
use crate::config::AgentConfig;
use crate::core::Event;
use crate::endpoint::EndpointRecords;
use crate::files;

impl Agent {
    /// Looks whether everything can be taken away, and takes the CNI plugin out first. After an error the agent goes
    /// on as before.
    pub(super) async fn begin_detach(&mut self) -> Result<Vec<String>, RunError> {
        tunnel_start::refuse_foreign(&self.config)
            .await
            .map_err(unchanged)?;
        // One that we read is ours.
        if !self.park.is_there() {
            HoldDevice::refuse_foreign(&self.config.hold_device)
                .map_err(|error| unchanged(error.into()))?;
        }
        cni::take_plugin_away(&self.config)
    }

    /// Says goodbye, then takes everything away; the answer lists what. The core has stopped: after an error too there
    /// is nothing left for this agent to do.
    pub(super) async fn detach_all(
        &mut self,
        mut removed: Vec<String>,
    ) -> Result<Vec<String>, RunError> {
        self.feed(Event::Stop).await;
        self.tunnels.stop(Duration::ZERO).await;
        self.park.discard_all();
        let outcome = self.take_all_away(&mut removed).await;
        said(removed, outcome)
    }

    async fn take_all_away(&mut self, removed: &mut Vec<String>) -> Result<(), RunError> {
        removed.extend(self.gates.detach_all()?);
        self.routes.detach().await?;
        removed.push(format!(
            "routing table {} and its rules",
            self.config.routing_table
        ));
        nat::remove().await?;
        removed.push("nftables table handfast".into());
        for tunnel in self.tunnels.standing().devices.values() {
            tunnel.detach().await?;
            removed.push(format!("device {}", tunnel.device().name));
        }
        self.park.close()?;
        removed.push(format!("device {}", self.config.hold_device));
        removed.extend(hosts::take_addresses_away(&self.netlink, &self.endpoints).await?);
        removed.extend(clean_run_dir(&self.config, &self.endpoints)?);
        Ok(())
    }
}

/// For a start that goes no further: what it has made in the kernel.
pub(super) async fn undo(config: &AgentConfig) -> Result<(), RunError> {
    Kernel::detach_dir(&config.bpf_dir)?;
    tunnel_start::take_away(config).await?;
    Ok(HoldDevice::remove(&config.hold_device)?)
}

/// The same without a running agent, from what an earlier one left.
pub async fn detach(config: &AgentConfig) -> Result<Vec<String>, RunError> {
    start::require_root()?;
    let _lock = start::lock(&config.run_dir)?;
    let endpoints = EndpointRecords::open(&config.run_dir)?;
    tunnel_start::refuse_foreign(config)
        .await
        .map_err(unchanged)?;
    HoldDevice::refuse_foreign(&config.hold_device).map_err(|error| unchanged(error.into()))?;
    let mut removed = Vec::new();
    let outcome = take_left_over_away(config, &endpoints, &mut removed).await;
    said(removed, outcome)
}

async fn take_left_over_away(
    config: &AgentConfig,
    endpoints: &EndpointRecords,
    removed: &mut Vec<String>,
) -> Result<(), RunError> {
    removed.extend(cni::take_plugin_away(config)?);
    removed.extend(Kernel::detach_dir(&config.bpf_dir)?);
    removed.extend(tunnel_start::take_away(config).await?);
    HoldDevice::remove(&config.hold_device)?;
    nat::remove().await?;
    let (connection, netlink, _) =
        rtnetlink::new_connection().map_err(RunError::io("open netlink"))?;
    tokio::spawn(connection);
    removed.extend(hosts::take_addresses_away(&netlink, endpoints).await?);
    removed.extend(clean_run_dir(config, endpoints)?);
    Ok(())
}

/// Half a detach names its first half.
fn said(removed: Vec<String>, outcome: Result<(), RunError>) -> Result<Vec<String>, RunError> {
    match outcome {
        Ok(()) => Ok(removed),
        Err(error) if removed.is_empty() => Err(error),
        Err(error) => Err(RunError::Refused(format!(
            "{error}; taken away was already: {}. Put that right and repeat: handfast agent detach",
            removed.join(", ")
        ))),
    }
}

fn unchanged(error: RunError) -> RunError {
    RunError::Refused(format!(
        "{error}; rename or remove it, or give the names of this agent's own devices. Nothing was changed"
    ))
}

/// Forgets what belongs to the kernel's state that is gone. Links of workloads stay, since their traffic goes on;
/// so does forwarding, which they need.
fn clean_run_dir(
    config: &AgentConfig,
    endpoints: &EndpointRecords,
) -> Result<Vec<String>, RunError> {
    let mut notes = Vec::new();
    let kept: Vec<_> = endpoints.all().iter().filter(|e| e.created).collect();
    for endpoint in &kept {
        notes.push(format!(
            "the gates of endpoint {}; its link {} stays (ip link del {} removes it)",
            endpoint.name, endpoint.interface, endpoint.interface
        ));
    }
    if kept.is_empty() {
        let turned: Vec<String> = files::read_json(&forwarding_path(config))?.unwrap_or_default();
        forwarding::restore(&turned).map_err(RunError::io("turn forwarding back"))?;
    }
    for path in [
        snapshot_path(config),
        forwarding_path(config),
        config.run_dir.join("endpoints.json"),
        TunnelKeys::path(&config.run_dir),
    ] {
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(RunError::io("remove the run directory's files")(error));
        }
    }
    Ok(notes)
}
