//! The XFRM device: made or adopted, and taken away.

use rtnetlink::packet_route::link::InfoKind;

use super::options::IpsecOptions;
use crate::netlink::{Link, Netlink};
use crate::{Backend, Device, Error, mtu};

/// How the device is known to be ours.
const ALIAS: &str = "handfast tunnel";

/// The device of an earlier agent, if there is one and it is ours.
pub(super) async fn adopt(
    options: &IpsecOptions,
    netlink: &Netlink,
) -> Result<Option<Link>, Error> {
    let Some(link) = netlink.link(options.name.as_str()).await? else {
        return Ok(None);
    };
    let foreign = |found: String| Error::ForeignDevice {
        name: options.name.to_string(),
        found,
    };
    if link.kind != Some(InfoKind::Xfrm) {
        return Err(foreign(match link.kind {
            Some(kind) => format!("a device of kind {kind:?}"),
            None => "a device of no kind".to_owned(),
        }));
    }
    if link.interface != Some(options.interface) {
        return Err(foreign(
            "an XFRM device with another interface id".to_owned(),
        ));
    }
    // An agent that was killed between making the device and naming it leaves it bare and down.
    if link.alias.as_deref() != Some(ALIAS) && link.up {
        return Err(foreign("an XFRM device that somebody else made".to_owned()));
    }
    Ok(Some(link))
}

/// Makes the device; it is down.
pub(super) async fn create(options: &IpsecOptions, netlink: &Netlink) -> Result<Link, Error> {
    let name = options.name.as_str();
    // Before anything is made: an underlay that cannot carry a tunnel leaves nothing half set up.
    wanted_mtu(options, netlink).await?;
    match netlink.add_xfrm(name, options.interface).await {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            return Err(Error::NoIpsec("XFRM devices (module xfrm_interface)"));
        }
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            return Err(Error::Occupied {
                what: format!("XFRM interface id {}", options.interface),
                found: "another XFRM device has it".to_owned(),
            });
        }
        Err(source) => {
            return Err(Error::Netlink {
                doing: format!("making XFRM device {name}"),
                source,
            });
        }
    }
    let link = netlink.link(name).await?;
    link.ok_or_else(|| Error::DeviceLost(name.to_owned()))
}

/// Gives the device its MTU and its mark of being ours.
pub(super) async fn configure(
    options: &IpsecOptions,
    netlink: &Netlink,
    link: &Link,
    adopted: bool,
) -> Result<Device, Error> {
    let mtu = wanted_mtu(options, netlink).await?;
    netlink.configure(link.index, mtu, ALIAS).await?;
    Ok(Device {
        name: options.name.to_string(),
        index: link.index,
        mtu,
        backend: Backend::Ipsec,
        adopted,
    })
}

/// IPv6 (40), ESP's header and sequence (8), IV (8), padding and trailer (5), ICV (16): 77 bytes, where WireGuard
/// has 80. One MTU for both kinds, so that a node that changes over keeps its routes.
async fn wanted_mtu(options: &IpsecOptions, netlink: &Netlink) -> Result<u32, Error> {
    match options.mtu {
        Some(chosen) => mtu::chosen(chosen),
        None => mtu::fitting(netlink, &options.underlay, options.fwmark).await,
    }
}
