//! A nat chain that keeps source addresses true toward the tunnel.
//!
//! A CNI's masquerade (`saddr podCIDR daddr != podCIDR masquerade`, at priority 100) would give packets to
//! another node's workloads this node's address, and the source gate would refuse them. Our chain at priority 90
//! maps the source to itself; the translation is settled then, and later rules are not asked (DATAPATH.md).

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::wireguard::DeviceName;
use crate::{Error, programs};

/// The table, family inet (kernel 5.2 for nat in it). Nobody else writes to it.
const TABLE: &str = "inet handfast";
/// Before every masquerade at the usual priority `srcnat` (100).
const PRIORITY: i32 = 90;
const PATIENCE: Duration = Duration::from_secs(10);

/// Installs the chain for these tunnel devices, in one transaction; an older one of ours is replaced.
pub async fn install(devices: &[DeviceName]) -> Result<(), Error> {
    run(&script(devices)).await
}

/// Takes the table away; that it is gone already is no error.
pub async fn remove() -> Result<(), Error> {
    run(&format!("add table {TABLE}\ndelete table {TABLE}\n")).await
}

fn script(devices: &[DeviceName]) -> String {
    let mut script = format!(
        "add table {TABLE}\n\
         delete table {TABLE}\n\
         add table {TABLE}\n\
         add chain {TABLE} keep-source {{ type nat hook postrouting priority {PRIORITY}; policy accept; }}\n"
    );
    for device in devices {
        for (family, source) in [("ipv4", "ip to ip saddr"), ("ipv6", "ip6 to ip6 saddr")] {
            let _ = writeln!(
                script,
                "add rule {TABLE} keep-source oifname \"{device}\" meta nfproto {family} snat {source}"
            );
        }
    }
    script
}

/// The `nft` program.
pub(crate) fn program() -> Result<PathBuf, Error> {
    programs::find("nft".as_ref()).ok_or(Error::NoNft)
}

async fn run(script: &str) -> Result<(), Error> {
    let mut child = Command::new(program()?)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
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
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Error::Nft(words.trim().chars().take(500).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_replaces_the_whole_table_in_one_go_for_both_families() {
        let script = script(&["hf-wg0".parse().unwrap()]);
        assert_eq!(script.matches("snat").count(), 2);
        assert!(
            script.starts_with("add table inet handfast\ndelete table inet handfast\nadd table")
        );
        assert!(script.contains("oifname \"hf-wg0\" meta nfproto ipv6 snat ip6 to ip6 saddr"));
    }
}
