//! Which interfaces the tripwire watches: all that have an address of their own and are not ours or a workload's.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::LinkAttribute;
use tokio::sync::Notify;

use super::agent::Agent;
use super::{RunError, tunnel_start};

/// Wakes the agent's loop when an interface or an address comes or goes. Many changes wake it once.
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
        while messages.next().await.is_some() {
            sender.notify_one();
        }
    });
    Ok(changed)
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
        let mut ours = vec![self.config.hold_device.clone()];
        let tunnels = tunnel_start::device_names(&self.config)?;
        ours.extend(tunnels.iter().map(ToString::to_string));
        let watched = links.into_iter().filter_map(|link| {
            let index = link.header.index;
            let name = link.attributes.into_iter().find_map(|a| match a {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })?;
            let endpoints = self.endpoints.all();
            let workload = endpoints.iter().any(|endpoint| endpoint.ifindex == index);
            let addressed = addresses.iter().any(|(of, _)| *of == index);
            let watched = addressed && !workload && name != "lo" && !ours.contains(&name);
            watched.then_some((index, name))
        });
        Ok(watched.collect())
    }
}

fn failed(doing: &'static str) -> impl FnOnce(rtnetlink::Error) -> RunError {
    move |error| RunError::Io {
        doing,
        source: std::io::Error::other(error.to_string()),
    }
}
