//! Our nftables table: what only the host's packet filter can do for the gates.
//!
//! **Sources stay true toward the tunnel.** A CNI's masquerade (`saddr podCIDR daddr != podCIDR masquerade`, at priority 100) would give packets to
//! another node's workloads this node's address, and the source gate would refuse them. Our chain at priority 90
//! maps the source to itself; the translation is settled then, and later rules are not asked.
//!
//! **What policy refused does not reach this host.** The gate at a workload's interface cannot tell a service
//! address from any other, so it only marks what egress policy refuses as written; the gates at the tunnel, at other
//! workloads and on the underlay decide on the true address. No gate stands before the host itself: here the input
//! chain drops what still carries that mark. Neighbour discovery of the link is let through.
//!
//! **Whatever is forwarded has a mark.** A packet that the host reassembles and fragments again has lost the interface
//! it came by; without a mark it would look like the host's own. The gates mark what they see; the forward chain marks
//! the rest, which came by an interface without a gate, as from outside.
//!
//! **The tunnel's ports are open to other nodes only.** WireGuard answers whoever knows its key, and cannot be told not
//! to follow a peer to another address: what does not come from a signed underlay address does not reach it.
//!
//! Not done here: what policy refused and is forwarded into an interface without a gate (another bridge, a VPN) passes.
//! At the forward hook it looks like traffic to another workload, whose own gate is yet to decide.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::wireguard::DeviceName;
use crate::{Error, programs};

/// The four mark bits of the gates: what this table reads and writes of them. The numbers are the gates' own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    shift: u32,
}

impl Marks {
    /// All four.
    const ALL: u32 = 15;
    /// The two in which a gate says what it knows.
    const JUDGED: u32 = 3;
    /// Their value for: a gate has let it through.
    const DECIDED: u32 = 1;
    /// Given back from hold.
    const RETURNED: u32 = 4;
    /// Their value for: egress policy refused the address as written.
    const UNDECIDED: u32 = 2;
    /// Their value for: from outside.
    const OUTSIDE: u32 = 3;

    /// Marks that begin at this bit; nothing above 28, since four would not fit.
    #[must_use]
    pub const fn at(shift: u32) -> Option<Self> {
        match shift {
            0..=28 => Some(Self { shift }),
            _ => None,
        }
    }

    /// Mark and mask of packets that came back from hold, and that a gate has let through.
    pub(crate) const fn held(self) -> (u32, u32) {
        (
            self.place(Self::DECIDED | Self::RETURNED),
            self.place(Self::ALL),
        )
    }

    const fn place(self, bits: u32) -> u32 {
        bits << self.shift
    }
}

impl Default for Marks {
    /// Where the gates put them unless told otherwise: bits 2 to 5.
    fn default() -> Self {
        Self { shift: 2 }
    }
}

/// The table, family inet (kernel 5.2 for nat in it). Nobody else writes to it.
const TABLE: &str = "inet handfast";
/// Before every masquerade at the usual priority `srcnat` (100).
const PRIORITY: i32 = 90;
const PATIENCE: Duration = Duration::from_secs(10);

/// What the table is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Toward which devices sources stay as they are.
    pub devices: Vec<DeviceName>,
    /// UDP ports of the tunnel.
    pub ports: Vec<u16>,
    /// From where packets may come to them; `None`: from anywhere.
    pub underlay: Option<Vec<IpAddr>>,
    /// The gates' mark bits.
    pub marks: Marks,
}

/// Installs the table, in one transaction; an older one of ours is replaced.
pub async fn install(table: &Table) -> Result<(), Error> {
    run(&["-f", "-"], &script(table)).await.map(drop)
}

/// The table as the kernel has it, without what it counted: to see whether somebody has changed it. Empty if it is
/// gone.
pub async fn read() -> Result<String, Error> {
    let listed = run(&["-s", "list", "table", "inet", "handfast"], "").await;
    match listed {
        Err(Error::Nft(words)) if words.contains("No such file") => Ok(String::new()),
        listed => listed,
    }
}

/// Takes the table away; that it is gone already is no error.
pub async fn remove() -> Result<(), Error> {
    let script = format!("add table {TABLE}\ndelete table {TABLE}\n");
    run(&["-f", "-"], &script).await.map(drop)
}

fn script(table: &Table) -> String {
    let marks = table.marks;
    let mut script = format!(
        "add table {TABLE}\n\
         delete table {TABLE}\n\
         add table {TABLE}\n\
         add chain {TABLE} keep-source {{ type nat hook postrouting priority {PRIORITY}; policy accept; }}\n"
    );
    for device in &table.devices {
        for (family, source) in [("ipv4", "ip to ip saddr"), ("ipv6", "ip6 to ip6 saddr")] {
            let _ = writeln!(
                script,
                "add rule {TABLE} keep-source oifname \"{device}\" meta nfproto {family} snat {source}"
            );
        }
    }
    let (all, judged) = (marks.place(Marks::ALL), marks.place(Marks::JUDGED));
    let (undecided, outside) = (marks.place(Marks::UNDECIDED), marks.place(Marks::OUTSIDE));
    let discovery = "nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert";
    let _ = write!(
        script,
        "add chain {TABLE} input {{ type filter hook input priority filter; policy accept; }}\n\
         {}\
         add rule {TABLE} input meta mark and {judged:#x} != {undecided:#x} accept\n\
         add rule {TABLE} input ip6 hoplimit 255 icmpv6 type {{ {discovery} }} accept\n\
         add rule {TABLE} input counter drop\n\
         add chain {TABLE} forward {{ type filter hook forward priority filter; policy accept; }}\n\
         add rule {TABLE} forward meta mark and {all:#x} == 0 meta mark set meta mark or {outside:#x}\n",
        guarded_ports(table)
    );
    script
}

/// Rules that keep strangers from the tunnel's ports. Without an address of one family nobody comes by it.
fn guarded_ports(table: &Table) -> String {
    let Some(underlay) = table.underlay.as_ref().filter(|_| !table.ports.is_empty()) else {
        return String::new();
    };
    let ports = listed(table.ports.iter());
    let mut rules = String::new();
    for (family, source) in [("ipv4", "ip saddr"), ("ipv6", "ip6 saddr")] {
        let of_family = |address: &&IpAddr| address.is_ipv4() == (family == "ipv4");
        let known = listed(underlay.iter().filter(of_family));
        let stranger = match known.is_empty() {
            true => String::new(),
            false => format!("{source} != {{ {known} }} "),
        };
        let _ = writeln!(
            rules,
            "add rule {TABLE} input meta nfproto {family} udp dport {{ {ports} }} {stranger}counter drop"
        );
    }
    rules
}

fn listed(items: impl Iterator<Item = impl std::fmt::Display>) -> String {
    items
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// The `nft` program.
pub(crate) fn program() -> Result<PathBuf, Error> {
    programs::find("nft".as_ref()).ok_or(Error::NoNft)
}

async fn run(arguments: &[&str], script: &str) -> Result<String, Error> {
    let mut child = Command::new(program()?)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::io("starting nft"))?;
    let mut input = child.stdin.take();
    let work = async {
        if let Some(input) = input.as_mut() {
            input.write_all(script.as_bytes()).await?;
        }
        drop(input);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PATIENCE, work)
        .await
        .map_err(|_| Error::Nft(format!("no answer in {} s", PATIENCE.as_secs())))?
        .map_err(Error::io("running nft"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Error::Nft(words.trim().chars().take(500).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table {
            devices: vec!["hf-wg0".parse().unwrap()],
            ports: vec![51872, 51873],
            underlay: None,
            marks: Marks::default(),
        }
    }

    #[test]
    fn ports_are_open_to_known_addresses_only_and_to_everybody_where_one_is_not_known() {
        assert!(!script(&table()).contains("dport"));
        let known = Table {
            underlay: Some(vec![
                "192.0.2.1".parse().unwrap(),
                "192.0.2.2".parse().unwrap(),
            ]),
            ..table()
        };
        let script = script(&known);
        let v4 = "nfproto ipv4 udp dport { 51872, 51873 } ip saddr != { 192.0.2.1, 192.0.2.2 } counter drop";
        let v6 = "nfproto ipv6 udp dport { 51872, 51873 } counter drop";
        assert!(script.contains(v4) && script.contains(v6), "{script}");
    }

    #[test]
    fn the_script_replaces_the_whole_table_in_one_go_for_both_families() {
        let script = script(&table());
        assert_eq!(script.matches("snat").count(), 2);
        assert!(
            script.starts_with("add table inet handfast\ndelete table inet handfast\nadd table")
        );
        assert!(script.contains("oifname \"hf-wg0\" meta nfproto ipv6 snat ip6 to ip6 saddr"));
    }

    #[test]
    fn the_mark_bits_are_where_they_are_set() {
        for (shift, judged, undecided) in [(2, "0xc", "0x8"), (28, "0x30000000", "0x20000000")] {
            let script = script(&Table {
                marks: Marks::at(shift).unwrap(),
                ..table()
            });
            let rule = format!("meta mark and {judged} != {undecided} accept");
            assert!(script.contains(&rule), "{script}");
        }
        assert_eq!(Marks::at(29), None);
        assert_eq!(Marks::at(2), Some(Marks::default()));
    }
}
