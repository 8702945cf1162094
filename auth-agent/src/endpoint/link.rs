//! The link between a workload's namespace and the node: found where a CNI made it, made where nobody did.
//!
//! A link of ours is a routed veth pair: the workload has host addresses (/32, /128) and a default route by a
//! gateway that exists on no wire (169.254.1.1, fe80::1), whose hardware address is the node's side. Both sides
//! know each other by permanent neighbour entries, so that no packet waits for a neighbour lookup.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMetric};
use rtnetlink::{
    Handle, LinkGetRequest, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use super::namespace::{NamespaceName, inside};
use super::{Endpoint, EndpointError, EndpointId};

/// The gateway of a link of ours, IPv4: link-local, so that it collides with no network of anybody's.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The gateway of a link of ours, IPv6.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The workload's interface on a link of ours.
const INNER_NAME: &str = "eth0";

/// What is asked for.
#[derive(Clone, Debug)]
pub struct LinkRequest {
    /// The workload's namespace.
    pub netns: NamespaceName,
    /// The number that the endpoint will have; it names a link of ours.
    pub id: EndpointId,
    /// Addresses for a link of ours; where there is a link already, what it must have (empty: whatever it has).
    pub addresses: Vec<IpAddr>,
    /// The tunnel's MTU, for the workload's routes: the first full datagram must not be lost to path MTU discovery.
    pub mtu: u32,
}

/// A link that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The namespace's inode.
    pub netns_inode: u64,
    /// The workload's addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's side.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// The hardware address of the workload's side.
    pub mac: [u8; 6],
    /// The hardware address of the node's side.
    pub host_mac: [u8; 6],
    /// True where this call, or an earlier one, made the link.
    pub created: bool,
}

/// Finds the link of a namespace to this node, or makes one. On an error nothing is left behind.
pub async fn attach(node: &Handle, request: &LinkRequest) -> Result<Attached, EndpointError> {
    let (namespace, netns_inode) = request.netns.open()?;
    let inner = inner_links(&request.netns).await?;
    if let Some((host, workload)) = matching(node, &inner).await? {
        return adopt(request, netns_inode, &host, workload).await;
    }
    if let Some(netkit) = inner.iter().find(|link| link.kind == Kind::Netkit) {
        return Err(EndpointError::Netkit {
            netns: request.netns.to_string(),
            interface: netkit.name.clone(),
        });
    }
    if request.addresses.is_empty() {
        return Err(EndpointError::NoLink(request.netns.to_string()));
    }
    let name = format!("hfe{:x}", request.id);
    let made = make(node, request, namespace, &name).await;
    match made {
        Ok(host) => {
            let inner = inner_links(&request.netns).await?;
            let workload = inner
                .iter()
                .find(|link| link.name == INNER_NAME)
                .ok_or_else(|| EndpointError::NoLink(request.netns.to_string()))?;
            Ok(Attached {
                netns_inode,
                addresses: request.addresses.clone(),
                interface: name,
                ifindex: host.index,
                mac: workload.mac,
                host_mac: host.mac,
                created: true,
            })
        }
        Err(error) => {
            remove(node, &name).await?;
            Err(error)
        }
    }
}

/// Brings the node's side of a link of ours up, and routes the workload's addresses to it. To be done when its
/// gates stand; doing it again changes nothing.
pub async fn open(node: &Handle, endpoint: &Endpoint) -> Result<(), EndpointError> {
    node.link()
        .set(LinkUnspec::new_with_index(endpoint.ifindex).up().build())
        .execute()
        .await
        .map_err(netlink("bring the workload's link up"))?;
    for address in &endpoint.addresses {
        neighbour(node, endpoint.ifindex, *address, endpoint.mac).await?;
        let route = match address {
            IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(*address, 32)
                .output_interface(endpoint.ifindex)
                .build(),
            IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(*address, 128)
                .output_interface(endpoint.ifindex)
                .build(),
        };
        node.route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(netlink("route the workload's address"))?;
    }
    Ok(())
}

/// Takes a link of ours away; one that is gone already is no error.
pub async fn remove(node: &Handle, interface: &str) -> Result<(), EndpointError> {
    let Some(link) = named(node, interface).await? else {
        return Ok(());
    };
    node.link()
        .del(link.index)
        .execute()
        .await
        .map_err(netlink("remove the workload's link"))
}

/// All interfaces of the node, by index and hardware address: the kernel gives an index anew at once.
pub async fn interfaces(node: &Handle) -> Result<BTreeSet<(u32, [u8; 6])>, EndpointError> {
    let all = dump(node).await?;
    Ok(all.iter().map(|link| (link.index, link.mac)).collect())
}

/// What we need to know of one interface.
#[derive(Clone, Debug)]
struct Link {
    index: u32,
    name: String,
    mac: [u8; 6],
    peer: Option<u32>,
    kind: Kind,
    addresses: Vec<IpAddr>,
}

/// What kind of interface one is, as far as workloads' links go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Veth,
    /// Programs of its own decide before any hook of a gate.
    Netkit,
    Other,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: [0; 6],
            peer: None,
            kind: Kind::Other,
            addresses: Vec::new(),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => {
                    if let Ok(mac) = bytes.try_into() {
                        link.mac = mac;
                    }
                }
                LinkAttribute::Link(peer) => link.peer = Some(peer),
                LinkAttribute::LinkInfo(infos) => {
                    let kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(InfoKind::Veth) => Some(Kind::Veth),
                        LinkInfo::Kind(InfoKind::Netkit) => Some(Kind::Netkit),
                        _ => None,
                    });
                    link.kind = kind.unwrap_or(Kind::Other);
                }
                _ => {}
            }
        }
        link
    }
}

/// The pair of veth ends, one here and one in the namespace, that name each other. Only the ones that the namespace's name
/// are looked at: a node has as many as it has workloads.
async fn matching<'a>(
    node: &Handle,
    inner: &'a [Link],
) -> Result<Option<(Link, &'a Link)>, EndpointError> {
    for workload in inner.iter().filter(|link| link.kind == Kind::Veth) {
        let Some(index) = workload.peer else { continue };
        let host = one(node.link().get().match_index(index)).await?;
        let names = |host: &Link| host.kind == Kind::Veth && host.peer == Some(workload.index);
        if let Some(host) = host.filter(names) {
            return Ok(Some((host, workload)));
        }
    }
    Ok(None)
}

async fn adopt(
    request: &LinkRequest,
    netns_inode: u64,
    host: &Link,
    workload: &Link,
) -> Result<Attached, EndpointError> {
    if workload.addresses.is_empty() {
        return Err(EndpointError::NoAddress {
            netns: request.netns.to_string(),
            interface: workload.name.clone(),
        });
    }
    let unknown = |address| !workload.addresses.contains(address);
    if request.addresses.iter().any(unknown) {
        return Err(EndpointError::OtherAddresses {
            netns: request.netns.to_string(),
            found: workload.addresses.clone(),
        });
    }
    Ok(Attached {
        netns_inode,
        addresses: workload.addresses.clone(),
        interface: host.name.clone(),
        ifindex: host.index,
        mac: workload.mac,
        host_mac: host.mac,
        created: host.name.starts_with("hfe"),
    })
}

async fn make(
    node: &Handle,
    request: &LinkRequest,
    namespace: std::os::fd::OwnedFd,
    name: &str,
) -> Result<Link, EndpointError> {
    use std::os::fd::AsRawFd;

    let passing = format!("{name}p");
    // Both hardware addresses are said at once: a device manager gives those that are not said others later.
    let (host_mac, inner_mac) = (hardware_address()?, hardware_address()?);
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(passing.clone())
        .address(inner_mac.to_vec())
        .build();
    let link = LinkVeth::new(name, &passing)
        .address(host_mac.to_vec())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    node.link()
        .add(link)
        .execute()
        .await
        .map_err(netlink("make the workload's link"))?;
    let lost = || EndpointError::NoLink(request.netns.to_string());
    let host = named(node, name).await?.ok_or_else(lost)?;
    let inner = named(node, &passing).await?.ok_or_else(lost)?;
    node.link()
        .set(
            LinkUnspec::new_with_index(inner.index)
                .name(INNER_NAME)
                .setns_by_fd(namespace.as_raw_fd())
                .build(),
        )
        .execute()
        .await
        .map_err(netlink("move the link into the workload's namespace"))?;
    let (addresses, mtu, gateway_mac) = (request.addresses.clone(), request.mtu, host.mac);
    inside(namespace, move |inside| async move {
        configure_inside(&inside, &addresses, mtu, gateway_mac).await
    })?;

    Ok(host)
}

async fn configure_inside(
    handle: &Handle,
    addresses: &[IpAddr],
    mtu: u32,
    gateway_mac: [u8; 6],
) -> Result<(), EndpointError> {
    let all = links(handle).await?;
    for link in all
        .iter()
        .filter(|l| l.name == "lo" || l.name == INNER_NAME)
    {
        handle
            .link()
            .set(LinkUnspec::new_with_index(link.index).up().build())
            .execute()
            .await
            .map_err(netlink("bring the workload's interface up"))?;
    }
    let Some(inner) = all.iter().find(|link| link.name == INNER_NAME) else {
        return Err(EndpointError::NoLink(INNER_NAME.into()));
    };
    for address in addresses {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let mut add = handle.address().add(inner.index, *address, bits);
        if address.is_ipv6() {
            // The address is this endpoint's alone: nobody else can be on the link, and the first packet
            // must not wait a second for duplicate address detection.
            use rtnetlink::packet_route::address::{AddressFlags, AddressHeaderFlags};
            let message = add.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        add.execute()
            .await
            .map_err(netlink("give the workload its address"))?;
    }
    if addresses.iter().any(IpAddr::is_ipv4) {
        neighbour(handle, inner.index, GATEWAY_V4.into(), gateway_mac).await?;
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
            .gateway(GATEWAY_V4)
            .onlink()
            .output_interface(inner.index)
            .build();
        route
            .attributes
            .push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        add_route(handle, route).await?;
    }
    if addresses.iter().any(IpAddr::is_ipv6) {
        neighbour(handle, inner.index, GATEWAY_V6.into(), gateway_mac).await?;
        let mut route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
            .gateway(GATEWAY_V6)
            .onlink()
            .output_interface(inner.index)
            .build();
        route
            .attributes
            .push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        add_route(handle, route).await?;
    }
    Ok(())
}

async fn add_route(
    handle: &Handle,
    route: rtnetlink::packet_route::route::RouteMessage,
) -> Result<(), EndpointError> {
    handle
        .route()
        .add(route)
        .execute()
        .await
        .map_err(netlink("give the workload its default route"))
}

async fn neighbour(
    handle: &Handle,
    ifindex: u32,
    address: IpAddr,
    mac: [u8; 6],
) -> Result<(), EndpointError> {
    handle
        .neighbours()
        .add(ifindex, address)
        .link_layer_address(&mac)
        .replace()
        .execute()
        .await
        .map_err(netlink("write a neighbour entry"))
}

async fn inner_links(netns: &NamespaceName) -> Result<Vec<Link>, EndpointError> {
    let (namespace, _) = netns.open()?;
    inside(namespace, |handle| async move { links(&handle).await })
}

/// The interface of that name.
async fn named(handle: &Handle, name: &str) -> Result<Option<Link>, EndpointError> {
    one(handle.link().get().match_name(name)).await
}

/// The one interface that is asked for, without its addresses; none if there is none.
async fn one(request: LinkGetRequest) -> Result<Option<Link>, EndpointError> {
    match request.execute().try_next().await {
        Ok(found) => Ok(found.map(Link::from)),
        Err(rtnetlink::Error::NetlinkError(answer)) if answer.raw_code() == -libc::ENODEV => {
            Ok(None)
        }
        Err(error) => Err(netlink("look an interface up")(error)),
    }
}

/// All interfaces that `handle` sees, without their addresses.
async fn dump(handle: &Handle) -> Result<Vec<Link>, EndpointError> {
    let all = handle.link().get().execute().map_ok(Link::from);
    all.try_collect().await.map_err(netlink("list interfaces"))
}

/// All interfaces that `handle` sees, with the addresses that can be announced.
async fn links(handle: &Handle) -> Result<Vec<Link>, EndpointError> {
    let mut links = dump(handle).await?;
    let addresses: Vec<_> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(netlink("list addresses"))?;
    for message in addresses {
        let Some(link) = links.iter_mut().find(|l| l.index == message.header.index) else {
            continue;
        };
        for attribute in message.attributes {
            if let AddressAttribute::Address(address) = attribute
                && !link_local(address)
            {
                link.addresses.push(address);
            }
        }
    }
    Ok(links)
}

/// A random address of our own making: locally administered, one station's.
fn hardware_address() -> Result<[u8; 6], EndpointError> {
    let mut address = [0; 6];
    aws_lc_rs::rand::fill(&mut address).map_err(|_| EndpointError::Io {
        doing: "make a hardware address".into(),
        source: std::io::Error::other("no random numbers"),
    })?;
    address[0] = (address[0] & 0xfc) | 0x02;
    Ok(address)
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_loopback(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_loopback(),
    }
}

fn netlink(doing: &'static str) -> impl FnOnce(rtnetlink::Error) -> EndpointError {
    move |source| EndpointError::Netlink { doing, source }
}
