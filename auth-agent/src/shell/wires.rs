//! Which interfaces the tripwire watches: all that have an address of their own and are not ours or a workload's.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::LinkAttribute;
use tokio::sync::Notify;

use super::RunError;
use super::agent::Agent;

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
    /// Attaches the tripwire to underlay interfaces that it does not watch yet.
    pub(super) async fn attach_wires(&mut self) -> Result<(), RunError> {
        let interfaces = self.underlay_interfaces().await?;
        self.gates.set_wires(interfaces)
    }

    async fn underlay_interfaces(&self) -> Result<BTreeSet<(u32, String)>, RunError> {
        let failed = |doing| {
            move |error: rtnetlink::Error| RunError::Io {
                doing,
                source: std::io::Error::other(error.to_string()),
            }
        };
        let addresses: Vec<_> = self
            .netlink
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list addresses"))?;
        let addressed: BTreeSet<u32> = addresses
            .iter()
            .filter(|message| {
                message.header.scope == AddressScope::Universe
                    && matches!(
                        message.header.family,
                        AddressFamily::Inet | AddressFamily::Inet6
                    )
                    && message
                        .attributes
                        .iter()
                        .any(|a| matches!(a, AddressAttribute::Address(ip) if !ip.is_loopback()))
            })
            .map(|message| message.header.index)
            .collect();
        let links: Vec<_> = self
            .netlink
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list interfaces"))?;
        let own = [
            self.config.wireguard_device.as_str(),
            self.config.hold_device.as_str(),
        ];
        Ok(links
            .into_iter()
            .filter_map(|link| {
                let name = link
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        LinkAttribute::IfName(name) => Some(name.clone()),
                        _ => None,
                    })?;
                let workload = self
                    .endpoints
                    .all()
                    .iter()
                    .any(|endpoint| endpoint.ifindex == link.header.index);
                (addressed.contains(&link.header.index)
                    && !workload
                    && name != "lo"
                    && !own.contains(&name.as_str()))
                .then_some((link.header.index, name))
            })
            .collect())
    }
}
