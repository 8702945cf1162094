//! The kernel's WireGuard, through wireguard-control.
//!
//! wireguard-control's own copies of keys (its key type and the netlink messages it builds) are not wiped; what
//! passes through here is.

use std::io;

use wireguard_control::{
    Backend, Device, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder, PeerInfo,
};
use zeroize::{Zeroize, Zeroizing};

use super::DeviceName;
use super::control::{Allowed, Change, PeerChange, PeerReading, Reading};
use crate::{Error, PresharedKey, PrivateKey, PublicKey};

pub(super) fn read(name: &DeviceName) -> Result<Reading, Error> {
    let device =
        Device::get(&interface(name)?, Backend::Kernel).map_err(|error| absent(name, error))?;
    Ok(Reading {
        private_key: device.private_key.and_then(secret).map(PrivateKey::new),
        port: device.listen_port.unwrap_or_default(),
        fwmark: device.fwmark.unwrap_or_default(),
        peers: device.peers.into_iter().map(read_peer).collect(),
    })
}

fn read_peer(peer: PeerInfo) -> PeerReading {
    let mut reading = PeerReading::new(PublicKey::new(peer.config.public_key.0));
    reading.preshared_key = peer
        .config
        .preshared_key
        .and_then(secret)
        .map(PresharedKey::new);
    reading.endpoint = peer.config.endpoint;
    reading.prefixes = peer
        .config
        .allowed_ips
        .iter()
        .filter_map(|allowed| ipnet::IpNet::new(allowed.address, allowed.cidr).ok())
        .collect();
    reading.last_handshake = peer.stats.last_handshake_time;
    reading.received_bytes = peer.stats.rx_bytes;
    reading.sent_bytes = peer.stats.tx_bytes;
    reading
}

/// Moves a key into memory that is wiped. All zero means that none is set.
fn secret(mut key: Key) -> Option<Zeroizing<[u8; 32]>> {
    let secret = Zeroizing::new(key.0);
    key.0.zeroize();
    (*secret != [0; 32]).then_some(secret)
}

pub(super) fn apply(name: &DeviceName, change: &Change) -> Result<(), Error> {
    let interface = interface(name)?;
    // The crate makes a missing device: that must not happen behind the gates' back.
    Device::get(&interface, Backend::Kernel).map_err(|error| absent(name, error))?;
    let mut update = DeviceUpdate::new();
    if let Some(key) = &change.private_key {
        update = update.set_private_key(Key(*key.secret()));
    }
    if let Some(port) = change.port {
        update = update.set_listen_port(port);
    }
    if let Some(mark) = change.fwmark {
        update = update.set_fwmark(mark);
    }
    if change.replace_peers {
        update = update.replace_peers();
    }
    for peer in &change.peers {
        update = update.add_peer(peer_update(peer));
    }
    update.apply(&interface, Backend::Kernel).map_err(|error| {
        match (error.raw_os_error(), change.port) {
            (Some(libc::EADDRINUSE), Some(port)) => Error::PortInUse(port),
            _ => Error::Refused(error),
        }
    })
}

fn peer_update(change: &PeerChange) -> PeerConfigBuilder {
    match change {
        PeerChange::Remove(key) => PeerConfigBuilder::new(&Key(*key.as_bytes())).remove(),
        PeerChange::Set {
            peer,
            keepalive,
            allowed,
        } => {
            let mut update = PeerConfigBuilder::new(&Key(*peer.public_key.as_bytes()))
                .set_preshared_key(Key(*peer.preshared_key.secret()))
                .set_endpoint(peer.endpoint);
            if let Some(seconds) = keepalive {
                update = update.set_persistent_keepalive_interval(*seconds);
            }
            if *allowed == Allowed::Replace {
                update = update.replace_allowed_ips();
            }
            if *allowed != Allowed::Keep {
                for prefix in &peer.prefixes {
                    update = update.add_allowed_ip(prefix.network(), prefix.prefix_len());
                }
            }
            update
        }
    }
}

fn interface(name: &DeviceName) -> Result<InterfaceName, Error> {
    name.as_str()
        .parse()
        .map_err(|_| Error::DeviceName(name.as_str().to_owned()))
}

fn absent(name: &DeviceName, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENODEV) => Error::DeviceLost(name.to_string()),
        _ => Error::Refused(error),
    }
}
