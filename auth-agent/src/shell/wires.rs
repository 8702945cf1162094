//! Which interfaces the tripwire watches: all that have an address of their own and are not ours or a workload's.
//!
//! A bridge with an address of this node's own prefixes is where a network has its workloads (`cni0`), and no underlay: what
//! they send to other nodes passes it between their gates and the tunnel's. Its ports are watched in its place, but for
//! veth links, which lead to namespaces of this machine.
//!
//! A veth link that has addresses of those prefixes and no other is a workload's gateway (what the `ptp` plugin makes): its
//! gates come a moment later, and the tripwire would take their mark off the workload's first packets until it is gone.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use tokio::sync::Notify;

use super::agent::Agent;
use super::{RunError, tunnel_start};

/// After a look at all interfaces, until the next: where workloads come and go by the hundred, so do their links.
const PAUSE: Duration = Duration::from_millis(100);

/// Wakes the agent's loop when an interface or an address comes or goes: at once, and for all that follows within the
/// pause once more at its end.
pub(super) fn watch() -> std::io::Result<Arc<Notify>> {
    let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ])?;
    tokio::spawn(connection);
    let changed = Arc::new(Notify::new());
    let sender = Arc::clone(&changed);
    tokio::spawn(async move {
        while let Some((message, _)) = messages.next().await {
            let queued = std::iter::from_fn(|| messages.next().now_or_never().flatten());
            let mut all = std::iter::once(message).chain(queued.map(|(message, _)| message));
            if all.any(|message| matters(&message.payload)) {
                sender.notify_one();
                tokio::time::sleep(PAUSE).await;
            }
        }
    });
    Ok(changed)
}

/// Of addresses that hold on their link only, which every link gives itself, nothing depends.
fn matters(message: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage::{DelAddress, NewAddress};
    match message {
        NetlinkPayload::InnerMessage(NewAddress(address) | DelAddress(address)) => {
            address.header.scope == AddressScope::Universe
        }
        _ => true,
    }
}

impl Agent {
    /// Has the tripwire watch the underlay, and the gates know the node's own addresses.
    pub(super) async fn attach_wires(&mut self) -> Result<(), RunError> {
        let addresses = self.addresses().await?;
        let interfaces = self.underlay_interfaces(&addresses).await?;
        let watched = self.gates.set_wires(interfaces);
        let own = addresses.into_iter().map(|(_, address)| address.into());
        watched.and(self.gates.set_hosts(own.collect()))
    }

    /// The node's own addresses but loopback's, each with its interface's index.
    async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>, RunError> {
        let messages: Vec<_> = self
            .netlink
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list addresses"))?;
        Ok(messages
            .iter()
            .filter(|message| message.header.scope == AddressScope::Universe)
            .flat_map(|message| {
                let index = message.header.index;
                message.attributes.iter().filter_map(move |a| match a {
                    AddressAttribute::Address(address) => Some((index, *address)),
                    _ => None,
                })
            })
            .filter(|(_, address)| !address.is_loopback())
            .collect())
    }

    async fn underlay_interfaces(
        &self,
        addresses: &[(u32, IpAddr)],
    ) -> Result<BTreeSet<(u32, String)>, RunError> {
        let links: Vec<_> = self
            .netlink
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list interfaces"))?;
        let links: Vec<Interface> = links.into_iter().map(Interface::from).collect();
        let mut ours = vec![self.config.hold_device.clone(), "lo".to_owned()];
        let tunnels = tunnel_start::device_names(&self.config)?;
        ours.extend(tunnels.iter().map(ToString::to_string));
        let endpoints = self.endpoints.all();
        let is_workload = |index| endpoints.iter().any(|endpoint| endpoint.ifindex == index);
        let others = links
            .into_iter()
            .filter(|link| !is_workload(link.index) && !ours.contains(&link.name));
        let others: Vec<_> = others.collect();
        Ok(watched(&others, addresses, &self.node.prefixes))
    }
}

/// What has to be known of an interface.
#[derive(Debug, Default)]
struct Interface {
    index: u32,
    name: String,
    is_bridge: bool,
    is_veth: bool,
    /// The bridge, or the like, whose port it is.
    master: Option<u32>,
}

impl From<LinkMessage> for Interface {
    fn from(message: LinkMessage) -> Self {
        let mut interface = Self {
            index: message.header.index,
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name = name,
                LinkAttribute::Controller(index) => interface.master = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    let is = |kind| infos.contains(&LinkInfo::Kind(kind));
                    interface.is_bridge = is(InfoKind::Bridge);
                    interface.is_veth = is(InfoKind::Veth);
                }
                _ => {}
            }
        }
        interface
    }
}

/// Of interfaces that are neither ours nor workloads', those to watch.
fn watched(
    links: &[Interface],
    addresses: &[(u32, IpAddr)],
    own: &[IpNet],
) -> BTreeSet<(u32, String)> {
    let has = |index: u32, wanted: &dyn Fn(&IpAddr) -> bool| {
        let mut all = addresses.iter();
        all.any(|(of, address)| *of == index && wanted(address))
    };
    let is_own = |address: &IpAddr| own.iter().any(|prefix| prefix.contains(address));
    let inside = |link: &Interface| link.is_bridge && has(link.index, &is_own);
    let of_workloads: BTreeSet<u32> = links
        .iter()
        .filter(|link| inside(link))
        .map(|link| link.index)
        .collect();
    let foreign = |address: &IpAddr| !is_own(address);
    let watched = links.iter().filter(|link| {
        let port = link
            .master
            .is_some_and(|bridge| of_workloads.contains(&bridge));
        let leads_out = match link.is_veth {
            true => has(link.index, &foreign),
            false => has(link.index, &|_| true) || port,
        };
        leads_out && !of_workloads.contains(&link.index)
    });
    watched
        .map(|link| (link.index, link.name.clone()))
        .collect()
}

fn failed(doing: &'static str) -> impl FnOnce(rtnetlink::Error) -> RunError {
    move |error| RunError::Io {
        doing,
        source: std::io::Error::other(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            ..Interface::default()
        }
    }

    #[test]
    fn what_leads_to_workloads_is_not_watched_and_what_leads_out_is() {
        let bridge = |index, name| Interface {
            is_bridge: true,
            ..interface(index, name)
        };
        let port = |index, name, master| Interface {
            master: Some(master),
            ..interface(index, name)
        };
        let veth = |index, name| Interface {
            is_veth: true,
            ..interface(index, name)
        };
        let links = [
            interface(2, "eth0"),
            bridge(3, "br-lan"),
            port(4, "eth1", 3),
            bridge(5, "cni0"),
            port(6, "vxlan7", 5),
            Interface {
                is_veth: true,
                ..port(7, "veth-unknown", 5)
            },
            // A tunnel device of flannel's has an address of the node's own prefix, and leads out.
            interface(8, "flannel.1"),
            interface(9, "nothing"),
            // What ptp makes for a pod; and a node's own uplink where nodes are namespaces.
            veth(10, "veth-ptp"),
            veth(11, "uplink"),
        ];
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let addresses = [
            (2, address("192.0.2.1")),
            (3, address("198.51.100.1")),
            (5, address("10.1.0.1")),
            (5, address("fd01::1")),
            (8, address("10.1.0.0")),
            (10, address("10.1.0.1")),
            (11, address("10.1.0.1")),
            (11, address("192.0.2.7")),
        ];
        let own = ["10.1.0.0/24".parse().unwrap(), "fd01::/64".parse().unwrap()];
        let watched = watched(&links, &addresses, &own);
        let names: Vec<&str> = watched.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["eth0", "br-lan", "vxlan7", "flannel.1", "uplink"]);
    }
}
