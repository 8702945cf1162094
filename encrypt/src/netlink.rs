//! The few things asked of the kernel about links, over one netlink socket of this network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoXfrm, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkWireguard, LinkXfrm};

use crate::error::netlink_errno;
use crate::{Error, Losses};

/// The address of a device that receives loosely; link-local, and on no link.
const LOOSE: Ipv4Addr = Ipv4Addr::new(169, 254, 72, 50);

/// A netlink socket. It belongs to the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A network interface, as far as tunnels care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) kind: Option<InfoKind>,
    /// The interface id of an XFRM device.
    pub(crate) interface: Option<u32>,
    pub(crate) alias: Option<String>,
    pub(crate) up: bool,
    pub(crate) losses: Losses,
}

impl Netlink {
    /// Opens the socket; needs a running tokio runtime. Dumps are filtered by the kernel (strict checking).
    pub(crate) fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
            .map_err(Error::io("opening a netlink socket"))?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The link of that name, or none.
    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let found = self
            .handle
            .link()
            .get()
            .match_name(name)
            .execute()
            .try_next()
            .await;
        absent_is_none(found, || format!("looking for device {name}"))
    }

    /// The link of that index, or none.
    pub(crate) async fn link_at(&self, index: u32) -> Result<Option<Link>, Error> {
        let found = self
            .handle
            .link()
            .get()
            .match_index(index)
            .execute()
            .try_next()
            .await;
        absent_is_none(found, || format!("looking for device number {index}"))
    }

    /// The names of all netkit devices.
    pub(crate) async fn netkit(&self) -> Result<Vec<String>, Error> {
        let links = self.handle.link().get().execute();
        let links: Vec<_> = links
            .try_collect()
            .await
            .map_err(Error::netlink("listing devices"))?;
        let links = links.into_iter().map(Link::from);
        let netkit = links.filter(|link| link.kind == Some(InfoKind::Netkit));
        Ok(netkit.map(|link| link.name).collect())
    }

    /// Makes a WireGuard device of the kernel; the error tells a kernel without from other failures.
    pub(crate) async fn add_wireguard(&self, name: &str) -> Result<(), io::Error> {
        let request = self.handle.link().add(LinkWireguard::new(name).build());
        request.execute().await.map_err(netlink_errno)
    }

    /// Makes an XFRM device with this interface id; the error tells a kernel without from other failures.
    pub(crate) async fn add_xfrm(&self, name: &str, interface: u32) -> Result<(), io::Error> {
        let device = LinkMessageBuilder::<LinkXfrm>::new(name).if_id(interface);
        let request = self.handle.link().add(device.build());
        request.execute().await.map_err(netlink_errno)
    }

    /// Sets what a tunnel device needs: MTU, an alias to know it by, and no addresses of its own making.
    pub(crate) async fn configure(&self, index: u32, mtu: u32, alias: &str) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index)
            .mtu(mtu)
            .alias(alias)
            .build();
        let request = self.handle.link().change(message);
        request.execute().await.map_err(Error::netlink(format!(
            "setting MTU {mtu} on the tunnel device"
        )))?;
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)],
            )]))
            .build();
        // A kernel without IPv6 refuses this, and needs it not.
        if let Err(error) = self.handle.link().change(message).execute().await {
            tracing::debug!(%error, "no address generation mode to set");
        }
        Ok(())
    }

    /// Lets a device receive IPv4 packets whose way back is another device. The kernel's reverse path filter does
    /// so in its loose mode, and for a device with an address only: one of host scope, which is never a source of
    /// anything. It stays: with its last address a device would lose its routes.
    pub(crate) async fn receive_loosely(&self, name: &str, index: u32) -> Result<(), Error> {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        std::fs::write(&path, "2").map_err(Error::io(format!("writing {path}")))?;
        let mut request = self.handle.address().add(index, LOOSE.into(), 32);
        request.message_mut().header.scope = AddressScope::Host;
        match request.execute().await.map_err(netlink_errno) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(Error::Netlink {
                doing: format!("giving {name} an address"),
                source: error,
            }),
            _ => Ok(()),
        }
    }

    pub(crate) async fn set_up(&self, index: u32) -> Result<(), io::Error> {
        let message = LinkUnspec::new_with_index(index).up().build();
        let request = self.handle.link().change(message);
        request.execute().await.map_err(netlink_errno)
    }

    /// Deletes a link; one that is gone already is no error.
    pub(crate) async fn delete(&self, index: u32) -> Result<(), Error> {
        match self
            .handle
            .link()
            .del(index)
            .execute()
            .await
            .map_err(netlink_errno)
        {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(Error::Netlink {
                doing: format!("deleting device number {index}"),
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// The device that packets of the tunnel leave by toward `underlay`, and the largest packet that fits
    /// there. An address of this node gives the device that carries it. Without an address: the default route.
    pub(crate) async fn path(
        &self,
        underlay: Option<IpAddr>,
        mark: u32,
    ) -> Result<(Link, u32), Error> {
        let target = underlay.unwrap_or(IpAddr::from([192, 0, 2, 1]));
        let route = self.route(target, mark).await?;
        let index = if route.header.kind == RouteType::Local {
            self.holder(target).await?
        } else {
            route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                })
        };
        let link = match index {
            Some(index) => self.link_at(index).await?,
            None => None,
        };
        let link = link.ok_or(Error::NoRoute(target))?;
        let limit = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Metrics(metrics) => {
                    metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                        _ => None,
                    })
                }
                _ => None,
            });
        let mtu = limit.map_or(link.mtu, |limit| limit.min(link.mtu));
        Ok((link, mtu))
    }

    async fn route(&self, target: IpAddr, mark: u32) -> Result<RouteMessage, Error> {
        let mut message = RouteMessage::default();
        let (family, bits, address) = match target {
            IpAddr::V4(address) => (AddressFamily::Inet, 32, RouteAddress::Inet(address)),
            IpAddr::V6(address) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(address)),
        };
        message.header.address_family = family;
        message.header.destination_prefix_length = bits;
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message
            .attributes
            .push(RouteAttribute::Destination(address));
        message.attributes.push(RouteAttribute::Mark(mark));
        let mut answers = Box::pin(self.handle.route().get(message).execute());
        match answers.try_next().await.map_err(netlink_errno) {
            Ok(Some(route)) => Ok(route),
            Ok(None) => Err(Error::NoRoute(target)),
            Err(error) if is_unreachable(&error) => Err(Error::NoRoute(target)),
            Err(source) => Err(Error::Netlink {
                doing: format!("looking for the route to {target}"),
                source,
            }),
        }
    }

    /// The address that packets to an underlay address come from.
    pub(crate) async fn source(&self, target: IpAddr, mark: u32) -> Result<IpAddr, Error> {
        let route = self.route(target, mark).await?;
        let source = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::PrefSource(RouteAddress::Inet(address)) => {
                    Some(IpAddr::V4(*address))
                }
                RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => {
                    Some(IpAddr::V6(*address))
                }
                _ => None,
            });
        source.ok_or(Error::NoRoute(target))
    }

    /// The index of the device that carries an address of this node.
    async fn holder(&self, address: IpAddr) -> Result<Option<u32>, Error> {
        let mut addresses = Box::pin(self.handle.address().get().execute());
        let doing = || Error::netlink("listing this node's addresses");
        while let Some(message) = addresses.try_next().await.map_err(doing())? {
            let same = message.attributes.iter().any(|attribute| {
                matches!(attribute, AddressAttribute::Local(held) | AddressAttribute::Address(held) if *held == address)
            });
            if same {
                return Ok(Some(message.header.index));
            }
        }
        Ok(None)
    }
}

fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::EACCES)
    )
}

fn absent_is_none(
    found: Result<Option<LinkMessage>, rtnetlink::Error>,
    doing: impl FnOnce() -> String,
) -> Result<Option<Link>, Error> {
    match found.map_err(netlink_errno) {
        Ok(message) => Ok(message.map(Link::from)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(source) => Err(Error::Netlink {
            doing: doing(),
            source,
        }),
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            kind: None,
            interface: None,
            alias: None,
            up: message.header.flags.contains(LinkFlags::Up),
            losses: Losses::default(),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Stats64(counted) => {
                    link.losses = Losses {
                        received_errors: counted.rx_errors,
                        sent_errors: counted.tx_errors,
                        received_dropped: counted.rx_dropped,
                        sent_dropped: counted.tx_dropped,
                    };
                }
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = Some(kind),
                            LinkInfo::Data(InfoData::Xfrm(data)) => {
                                link.interface = data.iter().find_map(|item| match item {
                                    InfoXfrm::IfId(id) => Some(*id),
                                    _ => None,
                                });
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}
