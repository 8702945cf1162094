//! Making the device, or taking over the one that an earlier agent left; and taking it away.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use rtnetlink::packet_route::link::InfoKind;
use tokio::time::{Instant, sleep};

use super::control::{Change, Control, PeerChange, PeerReading, Reading};
use super::daemon::{self, Adopted, Daemon};
use super::name::DeviceName;
use super::options::{Choice, Options};
use crate::netlink::{Link, Netlink};
use crate::{Device, Error, Peer, PrivateKey, PublicKey, mtu, probe};

/// How long the kernel may take to end a daemon that was killed, and its device with it.
const GOING: Duration = Duration::from_secs(5);

/// How a device of the kernel is known to be ours.
pub(super) const ALIAS: &str = "handfast tunnel";

/// The device of an earlier agent, if there is one and it is ours.
pub(super) async fn adopt(
    options: &Options,
    netlink: &Netlink,
) -> Result<Option<(Control, Link)>, Error> {
    let name = &options.name;
    let daemon = Daemon::adopt(&options.run_dir, name).await?;
    let mut link = netlink.link(name.as_str()).await?;
    match daemon {
        Adopted::Serving(daemon) => {
            return match link {
                Some(link) => Ok(Some((Control::Userspace(daemon), link))),
                None => Err(Error::DaemonFailed {
                    program: options.run_dir.clone(),
                    reason: format!(
                        "a daemon answers for {name}, but the device is not in this network namespace; \
                         give each agent a run directory of its own"
                    ),
                }),
            };
        }
        Adopted::Ended => link = going(netlink, name, link).await?,
        Adopted::None => {}
    }
    let Some(link) = link else { return Ok(None) };
    let foreign = |found: String| Error::ForeignDevice {
        name: name.to_string(),
        found,
    };
    if link.kind != Some(InfoKind::Wireguard) {
        return Err(foreign(match link.kind {
            Some(InfoKind::Tun) => {
                "a TUN device whose daemon has no control socket in our run directory".to_owned()
            }
            Some(kind) => format!("a device of kind {kind:?}"),
            None => "a device of no kind".to_owned(),
        }));
    }
    let control = Control::Kernel(name.clone());
    // An agent that was killed between making the device and naming it leaves it bare.
    let reading = control.read().await?;
    let bare = reading.private_key.is_none() && reading.peers.is_empty() && !link.up;
    if link.alias.as_deref() != Some(ALIAS) && !bare {
        return Err(foreign(
            "a WireGuard device that somebody else made".to_owned(),
        ));
    }
    Ok(Some((control, link)))
}

/// What is there once a TUN device had the time to go after its daemon.
async fn going(
    netlink: &Netlink,
    name: &DeviceName,
    mut link: Option<Link>,
) -> Result<Option<Link>, Error> {
    let deadline = Instant::now() + GOING;
    while Instant::now() < deadline
        && let Some(Link {
            kind: Some(InfoKind::Tun),
            ..
        }) = link
    {
        sleep(Duration::from_millis(10)).await;
        link = netlink.link(name.as_str()).await?;
    }
    Ok(link)
}

/// Makes the device, down and without a key.
pub(super) async fn create(options: &Options, netlink: &Netlink) -> Result<(Control, Link), Error> {
    let name = &options.name;
    check_port(options.port)?;
    // Before anything is made: an underlay that cannot carry a tunnel leaves nothing half set up.
    wanted_mtu(options, netlink).await?;
    let in_kernel = options.choice != Choice::Userspace
        && match netlink.add_wireguard(name.as_str()).await {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => false,
            Err(source) => {
                return Err(Error::Netlink {
                    doing: format!("making WireGuard device {name}"),
                    source,
                });
            }
        };
    let control = match (in_kernel, options.choice) {
        (true, _) => Control::Kernel(name.clone()),
        (false, Choice::Kernel) => return Err(Error::NoKernelWireGuard),
        (false, _) => {
            let program = daemon::implementation(options.implementation.as_deref())?;
            probe::tun()?;
            Control::Userspace(Daemon::start(&program, &options.run_dir, name).await?)
        }
    };
    match netlink.link(name.as_str()).await {
        Ok(Some(link)) => Ok((control, link)),
        outcome => {
            if let Control::Userspace(daemon) = &control {
                daemon.stop().await?;
            }
            outcome.and(Err(Error::DeviceLost(name.to_string())))
        }
    }
}

/// Takes a device away, with its daemon.
pub(super) async fn discard(netlink: &Netlink, control: &Control, index: u32) -> Result<(), Error> {
    match control {
        // A daemon takes its device with it.
        Control::Userspace(daemon) => daemon.stop().await,
        Control::Kernel(_) => netlink.delete(index).await,
    }
}

/// Port and mark as asked; the key and peers that are there, or a fresh key.
pub(super) async fn take_over(
    options: &Options,
    control: &Control,
    reading: Option<Reading>,
) -> Result<(PrivateKey, BTreeMap<PublicKey, Peer>), Error> {
    let reading = reading.unwrap_or_default();
    let mut change = Change {
        port: (reading.port != options.port).then_some(options.port),
        fwmark: (reading.fwmark != options.fwmark).then_some(options.fwmark),
        ..Change::default()
    };
    let mut peers = BTreeMap::new();
    let private_key = match reading.private_key {
        Some(key) => {
            for found in reading.peers {
                let key = found.public_key;
                match kept(found) {
                    Some(peer) => {
                        peers.insert(key, peer);
                    }
                    None => {
                        tracing::warn!(peer = %key, "removing a peer that no session of ours made");
                        change.peers.push(PeerChange::Remove(key));
                    }
                }
            }
            key
        }
        None => {
            let chosen = options.private_key.clone();
            let key = chosen.unwrap_or_else(PrivateKey::generate);
            change.private_key = Some(key.clone());
            change.replace_peers = true;
            key
        }
    };
    control.apply(&change).await?;
    Ok((private_key, peers))
}

/// A peer as an earlier agent set it: every one of ours has a preshared key and an endpoint.
fn kept(found: PeerReading) -> Option<Peer> {
    Some(Peer {
        // The device does not know it, and needs it not.
        number: 0,
        public_key: found.public_key,
        preshared_key: found.preshared_key?,
        endpoint: found.endpoint?,
        prefixes: found.prefixes,
    })
}

pub(super) async fn configure(
    options: &Options,
    netlink: &Netlink,
    control: &Control,
    link: Link,
    adopted: bool,
) -> Result<Device, Error> {
    let mtu = wanted_mtu(options, netlink).await?;
    netlink.configure(link.index, mtu, ALIAS).await?;
    Ok(Device {
        name: options.name.to_string(),
        index: link.index,
        mtu,
        backend: control.backend(),
        adopted,
    })
}

async fn wanted_mtu(options: &Options, netlink: &Netlink) -> Result<u32, Error> {
    match options.mtu {
        Some(chosen) => mtu::chosen(chosen),
        None => mtu::fitting(netlink, &options.underlay, options.fwmark).await,
    }
}

/// A daemon finds out only when its device comes up, and tells nobody.
fn check_port(port: u16) -> Result<(), Error> {
    let addresses: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
    for address in addresses {
        match UdpSocket::bind((address, port)) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {
                return Err(Error::PortInUse(port));
            }
            _ => {}
        }
    }
    Ok(())
}
