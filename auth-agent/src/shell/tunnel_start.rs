//! Tunnel devices at the start of an agent and after its end: made, taken over from an earlier one, taken away.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use handfast_bpf::HoldDevice;
use handfast_encrypt::{
    Backend, Device, Ipsec, IpsecOptions, Options, PublicKey, RouteOptions, Routes, Tunnel,
    WireGuard,
};

use super::RunError;
use super::tunnel_worker::Devices;
use super::tunnels::{Place, Places, Slot, TunnelKeys};
use crate::config::{AgentConfig, Encryption};
use crate::wire::TunnelKind;

/// The tunnel's devices, and the one whose key Hello says.
pub(super) struct Opened {
    pub(super) devices: Devices,
    pub(super) current: Arc<dyn Tunnel>,
    pub(super) keys: TunnelKeys,
}

/// A device that was made anew, since its daemon had ended while no agent ran, has another key and no peers: what is
/// remembered to be in it is not, and must not keep the next tunnels off its place.
async fn forget_gone(keys: &mut TunnelKeys, devices: &Devices) -> Result<(), RunError> {
    let mut held: BTreeMap<Slot, Vec<PublicKey>> = BTreeMap::new();
    for (slot, device) in devices {
        let peers = device.status().await?.peers;
        held.insert(*slot, peers.iter().map(|peer| peer.public_key).collect());
    }
    let there = |place: &Place| {
        held.get(&place.slot)
            .is_some_and(|keys| keys.contains(&place.key()))
    };
    let known: Vec<_> = keys
        .all()
        .iter()
        .map(|(peer, places)| (*peer, *places))
        .collect();
    for (peer, places) in known {
        let other = places.other.filter(there);
        match (there(&places.active), other) {
            (true, other) => keys.set(peer, Places { other, ..places })?,
            (false, Some(only)) => keys.set(peer, Places::only(only))?,
            (false, None) => keys.remove(peer)?,
        }
    }
    Ok(())
}

/// Makes the tunnel's device, or takes over what an earlier agent left: two devices if it was changing keys. What is
/// new is down.
pub(super) async fn open(config: &AgentConfig, underlay: Vec<IpAddr>) -> Result<Opened, RunError> {
    refuse_other_kind(config).await?;
    let mut keys = TunnelKeys::open(&config.run_dir)?;
    let devices = match config.encryption {
        Encryption::Wireguard => {
            let devices = open_wireguard(config, underlay).await?;
            forget_gone(&mut keys, &devices).await?;
            devices
        }
        Encryption::Ipsec => {
            let tunnel = Ipsec::open(ipsec_options(config, underlay)?).await?;
            Devices::from([(Slot::First, Arc::new(tunnel) as Arc<dyn Tunnel>)])
        }
    };
    let wanted = devices.get(&keys.current());
    let current = wanted.or_else(|| devices.values().next()).cloned();
    Ok(Opened {
        current: current.ok_or_else(|| RunError::Refused("no tunnel device was made".into()))?,
        devices,
        keys,
    })
}

async fn open_wireguard(config: &AgentConfig, underlay: Vec<IpAddr>) -> Result<Devices, RunError> {
    let first = wireguard_options(config, underlay)?;
    let mut devices = Devices::new();
    for (slot, options) in [(Slot::First, first.clone()), (Slot::Second, first.second())] {
        if let Some(found) = WireGuard::left_over(options).await? {
            devices.insert(slot, Arc::new(found));
        }
    }
    if devices.is_empty() {
        devices.insert(Slot::First, Arc::new(WireGuard::open(first).await?));
    }
    Ok(devices)
}

/// Gates that packets go past protect nobody.
pub(super) async fn refuse_host_routing(config: &AgentConfig) -> Result<(), RunError> {
    let found = match config.beside_host_routing {
        true => Vec::new(),
        false => crate::check::past_the_gates().await,
    };
    if found.is_empty() {
        return Ok(());
    }
    Err(RunError::Refused(format!(
        "{}. Then start with --accept-host-routing, since nothing here shows that it was done. Nothing was changed",
        found.join("; ")
    )))
}

/// A node has one kind of tunnel: peers of the other kind could not be told apart from those without one.
async fn refuse_other_kind(config: &AgentConfig) -> Result<(), RunError> {
    let found = match config.encryption {
        Encryption::Wireguard => Ipsec::there(&ipsec_options(config, Vec::new())?).await?,
        Encryption::Ipsec => {
            let first = wireguard_options(config, Vec::new())?;
            WireGuard::there(&first).await? || WireGuard::there(&first.second()).await?
        }
    };
    if !found {
        return Ok(());
    }
    Err(RunError::Refused(format!(
        "an earlier agent's tunnel of the other kind is still here, and --encryption says {}; take it away first: \
         handfast agent detach. Nothing was changed",
        config.encryption
    )))
}

/// As Hello says it.
pub(super) fn kind(device: &Device) -> TunnelKind {
    match device.backend {
        Backend::Kernel | Backend::Userspace => TunnelKind::WireGuard,
        Backend::Ipsec => TunnelKind::Ipsec,
    }
}

/// Refuses one name for two devices.
pub(super) fn refuse_same_names(config: &AgentConfig) -> Result<(), RunError> {
    let first = wireguard_options(config, Vec::new())?;
    let names = [
        ("--wireguard-device", first.name.to_string()),
        (
            "the second WireGuard device",
            first.second().name.to_string(),
        ),
        ("--ipsec-device", config.ipsec_device.clone()),
        ("--hold-device", config.hold_device.clone()),
    ];
    for (at, (what, name)) in names.iter().enumerate() {
        if let Some((other, _)) = names.iter().take(at).find(|(_, other)| other == name) {
            return Err(RunError::Refused(format!(
                "{what} and {other} would both be {name}: give each a name of its own. Nothing was changed"
            )));
        }
    }
    Ok(())
}

/// Refuses where somebody else's device has a name that ours may have: there is no telling what is whose.
pub(super) async fn refuse_foreign(config: &AgentConfig) -> Result<(), RunError> {
    let first = wireguard_options(config, Vec::new())?;
    for options in [first.clone(), first.second()] {
        WireGuard::refuse_foreign(&options).await?;
    }
    Ipsec::refuse_foreign(&ipsec_options(config, Vec::new())?).await?;
    Ok(())
}

/// Devices, a table and a rule that somebody else has under the names and numbers of ours: before anything is made.
pub(super) async fn refuse_others(config: &AgentConfig) -> Result<(), RunError> {
    let unchanged = |what: String| RunError::Refused(format!("{what}. Nothing was changed"));
    refuse_foreign(config)
        .await
        .map_err(|error| unchanged(error.to_string()))?;
    HoldDevice::refuse_foreign(&config.hold_device).map_err(|error| {
        let name = &config.hold_device;
        unchanged(format!(
            "{error}: a device of that name is not handfast's, or in use; remove it (ip link del {name}), or choose another \
             name with --hold-device"
        ))
    })?;
    Routes::refuse_foreign(route_options(config))
        .await
        .map_err(|error| unchanged(format!("{error} (--routing-table)")))
}

/// Takes the tunnel's devices and routes away without a running agent.
pub(super) async fn take_away(config: &AgentConfig) -> Result<Vec<String>, RunError> {
    let mut removed = Vec::new();
    let first = wireguard_options(config, Vec::new())?;
    for options in [first.clone(), first.second()] {
        if WireGuard::remove_left_over(&options).await? {
            removed.push(format!("device {}", options.name));
        }
    }
    let options = ipsec_options(config, Vec::new())?;
    if Ipsec::there(&options).await? && Ipsec::remove_left_over(&options).await? {
        removed.push(format!("device {}", options.name));
    }
    Routes::open(route_options(config)).await?.detach().await?;
    removed.push(format!(
        "routing table {} and its rules",
        config.routing_table
    ));
    Ok(removed)
}

/// Names of all devices that the tunnel may have.
pub(super) fn device_names(
    config: &AgentConfig,
) -> Result<Vec<handfast_encrypt::DeviceName>, RunError> {
    let first = wireguard_options(config, Vec::new())?;
    let second = first.second().name;
    Ok(match config.encryption {
        Encryption::Wireguard => vec![first.name, second],
        Encryption::Ipsec => vec![ipsec_options(config, Vec::new())?.name],
    })
}

/// UDP ports that the tunnel listens on.
pub(super) fn ports(config: &AgentConfig) -> Result<Vec<u16>, RunError> {
    let first = wireguard_options(config, Vec::new())?;
    Ok(match config.encryption {
        Encryption::Wireguard => vec![first.port, first.second().port],
        Encryption::Ipsec => Vec::new(),
    })
}

fn wireguard_options(config: &AgentConfig, underlay: Vec<IpAddr>) -> Result<Options, RunError> {
    let mut options = Options::new(config.run_dir.clone());
    options.name = config.wireguard_device.parse()?;
    options.port = config.wireguard_port;
    options.underlay = underlay;
    options.mtu = config.tunnel_mtu;
    options.choice = config.wireguard;
    options.keepalive = config.persistent_keepalive;
    Ok(options)
}

fn ipsec_options(config: &AgentConfig, underlay: Vec<IpAddr>) -> Result<IpsecOptions, RunError> {
    let mut options = IpsecOptions::new(config.run_dir.clone());
    options.name = config.ipsec_device.parse()?;
    options.underlay = underlay;
    options.mtu = config.tunnel_mtu;
    Ok(options)
}

pub(super) fn route_options(config: &AgentConfig) -> RouteOptions {
    RouteOptions {
        table: config.routing_table,
        ..RouteOptions::default()
    }
}
