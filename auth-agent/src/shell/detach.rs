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
    /// Says goodbye, then takes everything away; the answer lists what.
    pub(super) async fn detach_all(&mut self) -> Result<Vec<String>, RunError> {
        let plugin = cni::take_plugin_away(&self.config)?;
        self.feed(Event::Stop).await;
        self.tunnels.stop(Duration::ZERO).await;
        self.park.discard_all();
        let mut removed = self.gates.detach_all()?;
        removed.extend(plugin);
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
        Ok(removed)
    }
}

/// The same without a running agent, from what an earlier one left.
pub async fn detach(config: &AgentConfig) -> Result<Vec<String>, RunError> {
    start::require_root()?;
    let _lock = start::lock(&config.run_dir)?;
    let endpoints = EndpointRecords::open(&config.run_dir)?;
    let mut removed = cni::take_plugin_away(config)?;
    removed.extend(Kernel::detach_dir(&config.bpf_dir)?);
    removed.extend(tunnel_start::take_away(config).await?);
    HoldDevice::remove(&config.hold_device)?;
    nat::remove().await?;
    let (connection, netlink, _) =
        rtnetlink::new_connection().map_err(RunError::io("open netlink"))?;
    tokio::spawn(connection);
    removed.extend(hosts::take_addresses_away(&netlink, &endpoints).await?);
    removed.extend(clean_run_dir(config, &endpoints)?);
    Ok(removed)
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
