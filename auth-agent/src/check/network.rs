//! What other networks on this host do that gates cannot see: each would let packets reach a workload past its
//! gate, or break services, and none of it can be told from the packets.

use std::fs;
use std::path::Path;

use handfast_encrypt::probe;

/// Where the networks that we know pin their maps.
const MAPS: &str = "/sys/fs/bpf/tc/globals";

/// How those maps' names begin, whose they are, and what to set there.
const REDIRECTING: [(&str, &str, &str); 2] = [
    (
        "cilium_",
        "Cilium",
        "its host routing hands packets to workloads past every other program: set \
         bpf.hostLegacyRouting=true",
    ),
    (
        "cali_",
        "Calico's eBPF dataplane",
        "it hands packets to workloads past every other program: set bpfRedirectToPeer to Disabled",
    ),
];

/// Everything found that needs a person's look, by what it is about.
pub(super) async fn remarks() -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let redirecting = redirecting(Path::new(MAPS));
    found.extend(redirecting.map(|remark| ("other network", remark)));
    found.extend(netkit().await.map(|remark| ("netkit", remark)));
    let bridges = bridges(Path::new("/sys/class/net"));
    if !bridges.is_empty() {
        for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            let path = Path::new("/proc/sys/net/bridge").join(name);
            if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "0") {
                found.push((
                    "bridge",
                    format!(
                        "{name} is 0: service addresses do not work between workloads on one bridge ({}), with or \
                         without handfast; set net.bridge.{name}=1",
                        bridges.join(", ")
                    ),
                ));
            }
        }
    }
    found
}

/// Networks at work here whose programs may hand packets to workloads past the gates; nothing in the packets or in the
/// kernel's tables tells whether they do.
pub(crate) async fn past_the_gates() -> Vec<String> {
    let found = redirecting(Path::new(MAPS));
    found.chain(netkit().await).collect()
}

/// Devices whose own programs decide where a packet goes before any hook that a gate could be on.
async fn netkit() -> Option<String> {
    match probe::netkit().await {
        Ok(devices) if devices.is_empty() => None,
        Ok(devices) => Some(format!(
            "{} are netkit devices, whose own programs hand packets on before the hooks that gates are on: workloads behind \
             them cannot be endpoints; use veth pairs (Cilium: bpf.datapathMode=veth)",
            devices.join(", ")
        )),
        Err(error) => Some(format!("links cannot be listed: {error}")),
    }
}

fn redirecting(maps: &Path) -> impl Iterator<Item = String> {
    let found = REDIRECTING
        .into_iter()
        .filter(move |(prefix, ..)| has_entry(maps, prefix));
    found.map(|(_, name, advice)| format!("{name} is at work here; {advice}"))
}

fn has_entry(folder: &Path, prefix: &str) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .any(|name| name.starts_with(prefix))
}

fn bridges(devices: &Path) -> Vec<String> {
    let entries = fs::read_dir(devices).into_iter().flatten().flatten();
    let bridges = entries.filter(|entry| entry.path().join("bridge").is_dir());
    let mut names: Vec<String> = bridges
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_known_by_its_maps_and_a_bridge_by_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!has_entry(&folder.path().join("nothing"), "cilium_"));
        fs::write(folder.path().join("cilium_calls_00123"), "").unwrap();
        assert!(has_entry(folder.path(), "cilium_"));
        assert!(!has_entry(folder.path(), "cali_"));
        let found: Vec<String> = redirecting(folder.path()).collect();
        assert!(
            matches!(&*found, [one] if one.contains("Cilium") && one.contains("hostLegacyRouting"))
        );
        for (device, inside) in [("cni0", "bridge"), ("eth0", "queues"), ("br1", "bridge")] {
            fs::create_dir_all(folder.path().join(device).join(inside)).unwrap();
        }
        assert_eq!(bridges(folder.path()), ["br1", "cni0"]);
    }
}
