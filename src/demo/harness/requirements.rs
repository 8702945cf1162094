//! What a machine must have before anything is made on it.

use std::path::{Path, PathBuf};

/// Every program that the lab and its steps start, with the Debian package that has it.
pub const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("curl", "curl"),
    ("iperf3", "iperf3"),
    ("python3", "python3"),
];

/// Names everything that is missing; empty where the machine is fit.
pub fn missing() -> Vec<String> {
    missing_for("wireguard")
}

/// The same for a mesh with this kind of tunnel.
pub fn missing_for(encryption: &str) -> Vec<String> {
    let mut missing = Vec::new();
    if !nix::unistd::Uid::effective().is_root() {
        missing.push("root: network namespaces and eBPF need it (run with sudo)".to_owned());
    }
    if !is_bpffs(Path::new("/sys/fs/bpf")) {
        missing.push(
            "a bpffs on /sys/fs/bpf (mount it with: mount -t bpf bpf /sys/fs/bpf)".to_owned(),
        );
    }
    if !Path::new("/dev/net/tun").exists() {
        missing.push("/dev/net/tun: the kernel's TUN device holds packets".to_owned());
    }
    for (tool, package) in TOOLS {
        if find(tool).is_none() {
            missing.push(format!("{tool} (apt-get install {package})"));
        }
    }
    if encryption == "ipsec" && !kernel_has("xfrm_interface") {
        missing.push("IPsec: the kernel's XFRM devices (modprobe xfrm_interface)".to_owned());
    }
    if encryption == "wireguard" && !kernel_has("wireguard") && find("wireguard-go").is_none() {
        missing.push(
            "WireGuard: neither the kernel module (modprobe wireguard) nor wireguard-go \
             (apt-get install wireguard-go)"
                .to_owned(),
        );
    }
    missing
}

/// Loaded, built in, or a module that the kernel loads when it is asked for a device.
fn kernel_has(module: &str) -> bool {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release);
    Path::new("/sys/module").join(module).exists()
        || ["modules.builtin", "modules.dep"].iter().any(|list| {
            std::fs::read_to_string(modules.join(list))
                .is_ok_and(|text| text.contains(&format!("/{module}.ko")))
        })
}

/// Where a program is.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

fn is_bpffs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path)
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}
