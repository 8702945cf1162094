//! The agent's settings: every port, path and table is one (DESIGN.md, "Names, ports, paths").

use std::path::PathBuf;

pub use handfast_encrypt::Choice;

/// What an agent is told when it starts.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Where node key, node SVID and what must outlive a boot are kept (0700).
    pub data_dir: PathBuf,
    /// Sockets and what must not outlive a boot.
    pub run_dir: PathBuf,
    /// Where maps, programs and links are pinned, on a bpffs.
    pub bpf_dir: PathBuf,
    /// The port of sessions, on all of the node's underlay addresses.
    pub session_port: u16,
    /// What carries packets between nodes; the same on all of them.
    pub encryption: Encryption,
    /// The port of the WireGuard device; the next one is the second device's.
    pub wireguard_port: u16,
    /// The WireGuard device. The second one, which is there while static keys change, is named after it.
    pub wireguard_device: String,
    /// Whose WireGuard it is.
    pub wireguard: Choice,
    /// Seconds between WireGuard's keepalives, for nodes behind a stateful firewall or NAT.
    pub persistent_keepalive: Option<u16>,
    /// The XFRM device of IPsec.
    pub ipsec_device: String,
    /// The tunnel's MTU; what the underlay leaves, where none is given.
    pub tunnel_mtu: Option<u32>,
    /// The hold device.
    pub hold_device: String,
    /// The routing table for peers' prefixes.
    pub routing_table: u32,
    /// Whether to run beside a network whose programs can hand packets to workloads past the gates: somebody has
    /// switched that off there.
    pub beside_host_routing: bool,
    /// What a flow needs that no policy speaks of.
    pub default_authentication: DefaultAuthentication,
    /// Where workloads ask for their identities (SPIFFE Workload API and Envoy SDS).
    pub workload_socket: PathBuf,
    /// Files and folders of policies beside those from the CA.
    pub policy_paths: Vec<PathBuf>,
    /// Where the CNI plugin is put; none for a node whose pods are not ours to gate.
    pub cni: Option<CniPlace>,
}

/// Where a container runtime looks for networks and plugins.
#[derive(Clone, Debug)]
pub struct CniPlace {
    /// The folder of network configurations.
    pub configurations: PathBuf,
    /// The folder of plugins.
    pub programs: PathBuf,
}

/// What carries packets between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// WireGuard: the kernel's, or a userspace implementation.
    #[default]
    Wireguard,
    /// IPsec: the kernel's ESP in tunnel mode, AES-256-GCM.
    Ipsec,
}

impl std::fmt::Display for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Wireguard => "wireguard",
            Self::Ipsec => "ipsec",
        })
    }
}

/// What a flow needs that no policy speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DefaultAuthentication {
    /// It passes, encrypted; identities are proven in the background.
    #[default]
    Background,
    /// It passes only between proven identities.
    Required,
}

impl AgentConfig {
    /// The administrative socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }
}
