//! The routing table and rule that bring managed prefixes to the tunnel, beside the CNI's.
//!
//! Every remote prefix of the mesh has two routes in our table: one into the tunnel device, and behind it a
//! `blackhole` of the worst metric. When the device goes, its routes go with it and the blackhole answers: what
//! is managed is dropped, it never falls through to the underlay. The rule stands after the kernel's `local`
//! table and before everybody's `main`, and leaves out packets that carry the tunnel's own mark, so that the
//! tunnel's packets never enter the tunnel.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use crate::Error;
use crate::error::netlink_errno;
use crate::netlink::Netlink;

/// Who made a route or rule (rtm_protocol): ours are known by it. Not in use by any routing daemon's rt_protos.
const OURS: RouteProtocol = RouteProtocol::Other(72);
const INTO_TUNNEL: u32 = 100;
const FALLBACK: u32 = u32::MAX;
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// Numbers of the table and rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteOptions {
    /// The routing table, 7250 by default; nothing else may be in it.
    pub table: u32,
    /// The rule's priority, 725 by default: before `main` (32766) and the rules of the AWS CNI for pods' sources
    /// (1536), after `local` (0), Cilium's (9 to 110) and the AWS CNI's for local pods (512).
    pub priority: u32,
    /// The mark of the tunnel's own packets, as in [`crate::Options::fwmark`].
    pub fwmark: u32,
}

impl Default for RouteOptions {
    fn default() -> Self {
        Self {
            table: 7250,
            priority: 725,
            fwmark: crate::wireguard::DEFAULT_FWMARK,
        }
    }
}

/// Our table and rule, made or adopted.
pub struct Routes {
    netlink: Netlink,
    options: RouteOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    prefix: IpNet,
    /// Into this device, or the fallback.
    device: Option<u32>,
}

impl Routes {
    /// Makes the rules, or finds those of an earlier agent. Refuses a table or priority that others use.
    pub async fn open(options: RouteOptions) -> Result<Self, Error> {
        let routes = Self {
            netlink: Netlink::open()?,
            options,
        };
        for family in FAMILIES {
            routes.check_table(family).await?;
        }
        for family in FAMILIES {
            routes.ensure_rule(family).await?;
        }
        Ok(routes)
    }

    /// Refuses a table or priority that others use, and makes nothing.
    pub async fn refuse_foreign(options: RouteOptions) -> Result<(), Error> {
        let routes = Self {
            netlink: Netlink::open()?,
            options,
        };
        for family in FAMILIES {
            routes.check_table(family).await?;
            for rule in routes.rules(family).await? {
                routes.check_rule(&rule, &routes.rule(family))?;
            }
        }
        Ok(())
    }

    /// Makes the table exactly this: each remote prefix of the mesh into the device. Call it with all of them,
    /// also before any session exists: what has no session is held or dropped at the gate, never sent past it.
    pub async fn set(&self, device: u32, prefixes: &[IpNet]) -> Result<(), Error> {
        self.set_each(&[(device, prefixes)]).await
    }

    /// The same where peers are on two devices, while static keys change: each prefix into the device of its
    /// peer. A prefix that moves from one to the other is replaced in one step.
    pub async fn set_each(&self, devices: &[(u32, &[IpNet])]) -> Result<(), Error> {
        self.correct(devices).await.1
    }

    /// Puts rules and table right that somebody has changed. Says what was wrong; of routes that are not ours, which
    /// stay where they are, too.
    pub async fn mend(&self, devices: &[(u32, &[IpNet])]) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        for family in FAMILIES {
            if self.ensure_rule(family).await? {
                found.push(format!("the {family:?} rule was gone, and is there again"));
            }
            match self.check_table(family).await {
                Err(error @ Error::Occupied { .. }) => found.push(error.to_string()),
                checked => checked?,
            }
        }
        let (changed, outcome) = self.correct(devices).await;
        if changed > 0 {
            let table = self.options.table;
            found.push(format!(
                "{changed} routes of table {table} were changed, and are ours again"
            ));
        }
        outcome.map(|()| found)
    }

    /// Makes the table this; says how many routes were not as they should be.
    async fn correct(&self, devices: &[(u32, &[IpNet])]) -> (usize, Result<(), Error>) {
        let all = devices.iter().flat_map(|(device, prefixes)| {
            let device = *device;
            prefixes.iter().map(move |prefix| (device, prefix))
        });
        let (fallbacks, tunnelled): (BTreeSet<Route>, BTreeSet<Route>) = all
            .map(|(device, prefix)| (route_of(prefix, None), route_of(prefix, Some(device))))
            .unzip();
        let mut present = BTreeSet::new();
        for family in FAMILIES {
            match self.dump(family).await {
                Ok(messages) => present.extend(messages.iter().filter_map(read)),
                Err(error) => return (0, Err(error)),
            }
        }
        // Fallbacks first in, last out: no moment without one. One prefix that fails does not stop the others.
        let (mut changed, mut outcome) = (0, Ok(()));
        let missing =
            |wanted: &BTreeSet<Route>| wanted.difference(&present).copied().collect::<Vec<_>>();
        for route in missing(&fallbacks).into_iter().chain(missing(&tunnelled)) {
            changed += 1;
            outcome = outcome.and(self.add(route).await);
        }
        let (leaving_fallbacks, leaving): (Vec<_>, Vec<_>) = present
            .into_iter()
            .filter(|route| !fallbacks.contains(route) && !tunnelled.contains(route))
            .partition(|route| route.device.is_none());
        for route in leaving.into_iter().chain(leaving_fallbacks) {
            changed += 1;
            outcome = outcome.and(self.remove(route).await);
        }
        (changed, outcome)
    }

    /// Takes rules and routes away.
    pub async fn detach(&self) -> Result<(), Error> {
        for family in FAMILIES {
            for rule in self
                .rules(family)
                .await?
                .into_iter()
                .filter(|rule| self.is_ours(rule))
            {
                let gone = self.netlink.handle().rule().del(rule).execute().await;
                tolerate(gone, &[libc::ENOENT], || {
                    "removing the rule of the tunnel's table".to_owned()
                })?;
            }
            for message in self.dump(family).await? {
                if let Some(route) = read(&message) {
                    self.remove(route).await?;
                }
            }
        }
        Ok(())
    }

    async fn add(&self, route: Route) -> Result<(), Error> {
        let message = self.message(route);
        let added = self
            .netlink
            .handle()
            .route()
            .add(message)
            .replace()
            .execute()
            .await;
        tolerate(added, &[libc::EEXIST], || {
            format!("adding the route to {}", route.prefix)
        })
    }

    async fn remove(&self, route: Route) -> Result<(), Error> {
        let message = self.message(route);
        let removed = self.netlink.handle().route().del(message).execute().await;
        tolerate(removed, &[libc::ESRCH, libc::ENODEV], || {
            format!("removing the route to {}", route.prefix)
        })
    }

    fn message(&self, route: Route) -> RouteMessage {
        let mut message = match route.prefix {
            IpNet::V4(prefix) => v4(prefix),
            IpNet::V6(prefix) => v6(prefix),
        };
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(self.options.table));
        match route.device {
            Some(device) => {
                attributes.push(RouteAttribute::Oif(device));
                attributes.push(RouteAttribute::Priority(INTO_TUNNEL));
                message.header.kind = RouteType::Unicast;
                // The device has no neighbours and no gateway: everything there is directly on the link.
                message.header.scope = match route.prefix {
                    IpNet::V4(_) => RouteScope::Link,
                    IpNet::V6(_) => RouteScope::Universe,
                };
            }
            None => {
                attributes.push(RouteAttribute::Priority(FALLBACK));
                message.header.kind = RouteType::BlackHole;
                message.header.scope = RouteScope::Universe;
            }
        }
        message.header.protocol = OURS;
        message
    }

    async fn dump(&self, family: AddressFamily) -> Result<Vec<RouteMessage>, Error> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter
            .attributes
            .push(RouteAttribute::Table(self.options.table));
        let answers = self.netlink.handle().route().get(filter).execute();
        match answers.try_collect::<Vec<_>>().await.map_err(netlink_errno) {
            Ok(messages) => Ok(messages
                .into_iter()
                .filter(|message| table_of(message) == self.options.table)
                .collect()),
            // A table that was never used does not exist; a kernel without IPv6 has no such family.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
                ) =>
            {
                Ok(Vec::new())
            }
            Err(source) => Err(Error::Netlink {
                doing: format!("listing routing table {}", self.options.table),
                source,
            }),
        }
    }

    async fn check_table(&self, family: AddressFamily) -> Result<(), Error> {
        match self
            .dump(family)
            .await?
            .iter()
            .find(|message| message.header.protocol != OURS)
        {
            None => Ok(()),
            Some(foreign) => Err(Error::Occupied {
                what: format!("routing table {}", self.options.table),
                found: format!("a route of protocol {:?}", foreign.header.protocol),
            }),
        }
    }

    async fn rules(&self, family: AddressFamily) -> Result<Vec<RuleMessage>, Error> {
        let version = if family == AddressFamily::Inet {
            IpVersion::V4
        } else {
            IpVersion::V6
        };
        let answers = self.netlink.handle().rule().get(version).execute();
        match answers.try_collect().await.map_err(netlink_errno) {
            Ok(rules) => Ok(rules),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
                ) =>
            {
                Ok(Vec::new())
            }
            Err(source) => Err(Error::Netlink {
                doing: "listing routing rules".to_owned(),
                source,
            }),
        }
    }

    fn is_ours(&self, rule: &RuleMessage) -> bool {
        rule.attributes.contains(&RuleAttribute::Protocol(OURS))
            && rule
                .attributes
                .contains(&RuleAttribute::Table(self.options.table))
    }

    /// Refuses a rule of somebody else's at our priority.
    fn check_rule(&self, rule: &RuleMessage, wanted: &RuleMessage) -> Result<(), Error> {
        let priority = |rule: &RuleMessage| rule.attributes.iter().find_map(priority_of);
        if self.is_ours(rule) || priority(rule) != priority(wanted) {
            return Ok(());
        }
        let table = rule.attributes.iter().find_map(|part| match part {
            RuleAttribute::Table(table) => Some(*table),
            _ => None,
        });
        Err(Error::Occupied {
            what: format!("routing rule priority {}", self.options.priority),
            found: match table {
                Some(table) => format!("a rule that looks up table {table}"),
                None => "a rule without a table".to_owned(),
            },
        })
    }

    /// `priority: not from all fwmark MARK lookup TABLE`. True if it had to be made.
    async fn ensure_rule(&self, family: AddressFamily) -> Result<bool, Error> {
        let wanted = self.rule(family);
        let mut found = false;
        for rule in self.rules(family).await? {
            let same = |part: fn(&RuleAttribute) -> Option<u32>| {
                rule.attributes.iter().find_map(part) == wanted.attributes.iter().find_map(part)
            };
            if self.is_ours(&rule) {
                let exact = same(priority_of)
                    && same(mark_of)
                    && rule.header.flags.contains(RuleFlags::Invert);
                if exact && !found {
                    found = true;
                    continue;
                }
                // Made with other settings, or twice.
                let gone = self.netlink.handle().rule().del(rule).execute().await;
                tolerate(gone, &[libc::ENOENT], || "removing an old rule".to_owned())?;
            } else {
                self.check_rule(&rule, &wanted)?;
            }
        }
        if found {
            return Ok(false);
        }
        let mut request = self.netlink.handle().rule().add();
        *request.message_mut() = wanted;
        let added = request.execute().await;
        let made = added.is_ok();
        tolerate(
            added,
            &[libc::EEXIST, libc::EAFNOSUPPORT, libc::EOPNOTSUPP],
            || format!("adding the rule for routing table {}", self.options.table),
        )?;
        Ok(made)
    }

    fn rule(&self, family: AddressFamily) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        rule.header.action = RuleAction::ToTable;
        rule.header.flags = RuleFlags::Invert;
        rule.attributes = vec![
            RuleAttribute::Priority(self.options.priority),
            RuleAttribute::Table(self.options.table),
            RuleAttribute::FwMark(self.options.fwmark),
            RuleAttribute::FwMask(u32::MAX),
            RuleAttribute::Protocol(OURS),
        ];
        rule
    }
}

fn priority_of(attribute: &RuleAttribute) -> Option<u32> {
    match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    }
}

fn mark_of(attribute: &RuleAttribute) -> Option<u32> {
    match attribute {
        RuleAttribute::FwMark(mark) => Some(*mark),
        _ => None,
    }
}

fn route_of(prefix: &IpNet, device: Option<u32>) -> Route {
    Route {
        prefix: prefix.trunc(),
        device,
    }
}

fn v4(prefix: Ipv4Net) -> RouteMessage {
    RouteMessageBuilder::<std::net::Ipv4Addr>::new()
        .destination_prefix(prefix.network(), prefix.prefix_len())
        .build()
}

fn v6(prefix: Ipv6Net) -> RouteMessage {
    RouteMessageBuilder::<std::net::Ipv6Addr>::new()
        .destination_prefix(prefix.network(), prefix.prefix_len())
        .build()
}

fn table_of(message: &RouteMessage) -> u32 {
    let attribute = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    attribute.unwrap_or_else(|| u32::from(message.header.table))
}

/// One of our routes as the kernel tells it; none for what we would not have made.
pub(crate) fn read(message: &RouteMessage) -> Option<Route> {
    if message.header.protocol != OURS {
        return None;
    }
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0_u8; 4]),
        AddressFamily::Inet6 => IpAddr::from([0_u8; 16]),
        _ => return None,
    };
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
            _ => None,
        });
    let prefix = IpNet::new(
        address.unwrap_or(unspecified),
        message.header.destination_prefix_length,
    )
    .ok()?;
    let device = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
    // IPv6 names the loopback device in its blackholes.
    let device = device.filter(|_| message.header.kind == RouteType::Unicast);
    Some(Route { prefix, device })
}

fn tolerate(
    outcome: Result<(), rtnetlink::Error>,
    harmless: &[i32],
    doing: impl FnOnce() -> String,
) -> Result<(), Error> {
    match outcome.map_err(netlink_errno) {
        Err(error) if !is_one_of(&error, harmless) => Err(Error::Netlink {
            doing: doing(),
            source: error,
        }),
        _ => Ok(()),
    }
}

fn is_one_of(error: &io::Error, numbers: &[i32]) -> bool {
    error
        .raw_os_error()
        .is_some_and(|number| numbers.contains(&number))
}
