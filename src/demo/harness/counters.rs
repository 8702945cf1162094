//! The kernel's own counters, read inside a namespace.

use anyhow::Context;
use serde::Deserialize;

use super::namespace::Namespace;
use super::process::{Place, command};

/// What TCP in one namespace had to send again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retransmissions {
    /// SYN and SYN-ACK segments (`TcpExt: TCPSynRetrans`).
    pub syn: u64,
    /// All segments (`Tcp: RetransSegs`).
    pub all: u64,
}

impl Retransmissions {
    /// Reads them.
    pub fn read(ns: &Namespace) -> anyhow::Result<Self> {
        ns.inside(|| {
            // `/proc/net` would be the namespace of the process; this is the thread's.
            let netstat = std::fs::read_to_string("/proc/thread-self/net/netstat")?;
            let snmp = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
            Ok(Self {
                syn: field(&netstat, "TcpExt", "TCPSynRetrans").context("no TCPSynRetrans")?,
                all: field(&snmp, "Tcp", "RetransSegs").context("no RetransSegs")?,
            })
        })
    }

    /// What has come since an earlier reading.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            syn: self.syn.saturating_sub(earlier.syn),
            all: self.all.saturating_sub(earlier.all),
        }
    }
}

/// The two-line tables of procfs: a line of names, then one of values, both begun by the table's name.
fn field(text: &str, table: &str, name: &str) -> Option<u64> {
    let prefix = format!("{table}:");
    let mut lines = text.lines().filter(|line| line.starts_with(&prefix));
    let position = lines.next()?.split_whitespace().position(|n| n == name)?;
    lines.next()?.split_whitespace().nth(position)?.parse().ok()
}

/// Counts what arrives in a namespace from certain addresses, before anything there could drop it.
#[derive(Debug)]
pub struct Arrivals<'a> {
    place: &'a Place,
}

impl<'a> Arrivals<'a> {
    /// Sets the counters up: one for each name, for packets from any of its addresses.
    pub fn watch(
        place: &'a Place,
        sources: &[(&str, &[std::net::IpAddr])],
    ) -> anyhow::Result<Self> {
        let mut rules = String::from("table inet arrivals {\n");
        for (name, _) in sources {
            rules.push_str(&format!("  counter {name} {{}}\n"));
        }
        rules.push_str("  chain in { type filter hook prerouting priority -500;\n");
        for (name, addresses) in sources {
            for address in *addresses {
                let family = if address.is_ipv4() { "ip" } else { "ip6" };
                rules.push_str(&format!(
                    "    {family} saddr {address} counter name {name}\n"
                ));
            }
        }
        rules.push_str("  }\n}\n");
        place
            .run(&mut command("nft", &[&rules]), LIMIT)?
            .success("set up counters with nft")?;
        Ok(Self { place })
    }

    /// Reads counters that were set up before.
    pub fn again(place: &'a Place) -> Self {
        Self { place }
    }

    /// The packets that one counter has seen.
    pub fn packets(&self, name: &str) -> anyhow::Result<u64> {
        let listing = self
            .place
            .run(
                &mut command("nft", &["-j", "list", "counter", "inet", "arrivals", name]),
                LIMIT,
            )?
            .success("read a counter with nft")?;
        let listing: Listing = serde_json::from_str(&listing.stdout)?;
        listing
            .nftables
            .into_iter()
            .find_map(|item| item.counter)
            .map(|counter| counter.packets)
            .with_context(|| format!("nft shows no counter {name}"))
    }
}

const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    counter: Option<Counter>,
}

#[derive(Deserialize)]
struct Counter {
    packets: u64,
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn a_value_is_found_under_its_name_in_its_own_table() {
        let text = "Ip: A B\nIp: 1 2\nTcp: A B\nTcp: 3 4\n";
        assert_eq!(field(text, "Tcp", "B"), Some(4));
        assert_eq!(field(text, "Ip", "A"), Some(1));
        assert_eq!(field(text, "Udp", "A"), None);
        assert_eq!(field(text, "Ip", "C"), None);
    }
}
