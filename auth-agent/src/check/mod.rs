//! `handfast check`: is this host fit to be a node, before anything is changed on it.

mod network;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use handfast_encrypt::probe;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use rustls_pki_types::UnixTime;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(crate) use self::network::past_the_gates;
use crate::admin::Client;
use crate::config::AgentConfig;
use crate::identity::NodeStore;
use crate::workload_api::Peer;

/// How long a port may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// The kernels that tests have booted: `make test-kernels`, and the machine that develops it (6.18).
const TESTED_KERNELS: [(u32, u32); 4] = [(6, 1), (6, 12), (6, 18), (7, 2)];

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What.
    pub what: String,
    /// How it stands.
    pub state: State,
    /// The fact, and where it is not good what to do.
    pub detail: String,
}

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it must be.
    Ok,
    /// Works, but deserves a look.
    Warning,
    /// The agent will not run, or not do its work.
    Failed,
    /// Only root can see it.
    Unknown,
}

/// Looks at everything that an agent with these settings needs; what only root can see is unknown to others.
pub async fn check(config: &AgentConfig) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    if !nix::unistd::geteuid().is_root() {
        findings.without_root(config);
        return findings.0;
    }
    findings.add("user", State::Ok, "root");
    findings.host(config);
    findings.tunnel().await;
    for (what, remark) in network::remarks().await {
        findings.add(what, State::Warning, remark);
    }
    findings.ports(config).await;
    findings.identity(config).await;
    findings.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, what: &str, state: State, detail: impl Into<String>) {
        self.0.push(Finding {
            what: what.into(),
            state,
            detail: detail.into(),
        });
    }

    fn outcome<E: ToString>(&mut self, what: &str, outcome: Result<String, E>) {
        match outcome {
            Ok(detail) => self.add(what, State::Ok, detail),
            Err(error) => self.add(what, State::Failed, error.to_string()),
        }
    }

    /// What others would find is their own lack of rights.
    fn without_root(&mut self, config: &AgentConfig) {
        self.add(
            "user",
            State::Failed,
            "not root: this check needs root, as the agent does",
        );
        self.kernel();
        self.outcome("bpffs", bpffs(&config.bpf_dir));
        for what in [
            "eBPF",
            "TUN",
            "nftables",
            "IPsec",
            "WireGuard",
            "agent",
            "identity",
            "CA",
            "peers",
        ] {
            self.add(what, State::Unknown, "needs root");
        }
    }

    fn kernel(&mut self) {
        match kernel_version() {
            Some((text, version)) => match untested(version) {
                None => self.add("kernel", State::Ok, text),
                Some(remark) => self.add("kernel", State::Warning, format!("{text}: {remark}")),
            },
            None => self.add("kernel", State::Warning, "its version cannot be read"),
        }
    }

    fn host(&mut self, config: &AgentConfig) {
        self.kernel();
        if Peer::is_exact() {
            self.add(
                "workloads",
                State::Ok,
                "the kernel names the process of a socket",
            );
        } else {
            self.add(
                "workloads",
                State::Warning,
                "the kernel does not name the process of a socket (Linux 6.5 does): callers of the Workload API are found by \
                 process number, which could come round to another process of the same user while they connect",
            );
        }
        if let Some(warning) = crate::identity::swap::warning(&config.run_dir) {
            self.add("swap", State::Warning, warning);
        }
        self.outcome("bpffs", bpffs(&config.bpf_dir));
        let loads = handfast_bpf::probe().map(|()| "programs and maps load".to_owned());
        self.outcome("eBPF", loads);
        self.outcome(
            "TUN",
            probe::tun().map(|()| "/dev/net/tun can be opened".to_owned()),
        );
        self.outcome(
            "nftables",
            probe::nft().map(|path| path.display().to_string()),
        );
    }

    async fn tunnel(&mut self) {
        match probe::ipsec().await {
            Ok(()) => self.add("IPsec", State::Ok, "in the kernel"),
            Err(error) => self.add("IPsec", State::Warning, error.to_string()),
        }
        match probe::kernel_wireguard().await {
            Ok(true) => self.add("WireGuard", State::Ok, "in the kernel"),
            Ok(false) | Err(_) => match probe::implementation(None) {
                Ok(path) => self.add(
                    "WireGuard",
                    State::Ok,
                    format!(
                        "not in the kernel; {} will be used (slower)",
                        path.display()
                    ),
                ),
                Err(error) => self.add("WireGuard", State::Failed, error.to_string()),
            },
        }
    }

    async fn ports(&mut self, config: &AgentConfig) {
        if Client::connect(&config.admin_socket()).await.is_ok() {
            self.add("agent", State::Ok, "runs, and holds its ports");
            return;
        }
        self.add(
            "agent",
            State::Warning,
            "does not run; start it with: handfast agent run",
        );
        let tcp = std::net::TcpListener::bind(("0.0.0.0", config.session_port));
        self.outcome(
            "session port",
            tcp.map(|_| format!("TCP {} is free", config.session_port))
                .map_err(|error| {
                    format!("TCP {}: {error}; see --session-port", config.session_port)
                }),
        );
        let udp = std::net::UdpSocket::bind(("0.0.0.0", config.wireguard_port));
        self.outcome(
            "tunnel port",
            udp.map(|_| format!("UDP {} is free", config.wireguard_port)).map_err(|error| {
                format!(
                    "UDP {}: {error} (fine if an earlier agent's tunnel still runs); see --wireguard-port",
                    config.wireguard_port
                )
            }),
        );
    }

    async fn identity(&mut self, config: &AgentConfig) {
        let store = match NodeStore::open(&config.data_dir) {
            Ok(store) => store,
            Err(error) => return self.add("identity", State::Failed, error.to_string()),
        };
        let node = store.identity().and_then(|identity| {
            store
                .trust()?
                .node(&identity.chain, UnixTime::now())
                .map_err(|error| handfast_ca::Error::from(error).into())
        });
        let own = match node {
            Ok(node) => {
                let own = node.spiffe_id.to_string();
                let detail = format!("{own}, this host's clock fits its SVID");
                self.add("identity", State::Ok, detail);
                Some(own)
            }
            Err(error) => {
                self.add("identity", State::Failed, error.to_string());
                None
            }
        };
        match store.ca_address() {
            Ok(address) => {
                let reached = reach(&address).await;
                self.outcome("CA", reached.map(|()| format!("{address} answers")));
            }
            Err(error) => self.add("CA", State::Failed, error.to_string()),
        }
        let Ok(knowledge) = store.knowledge() else {
            return self.add(
                "peers",
                State::Failed,
                "what the CA said last cannot be read",
            );
        };
        let others = knowledge.nodes.into_iter();
        for node in others.filter(|node| own.as_ref() != Some(&node.spiffe_id)) {
            for address in node.underlay {
                self.peer(&node.name, address).await;
            }
        }
    }

    /// A firewall between two nodes is the commonest fault of all.
    async fn peer(&mut self, name: &str, address: SocketAddr) {
        let what = format!("node {name}");
        match reach(&address.to_string()).await {
            Ok(()) => self.add(&what, State::Ok, format!("{address} answers")),
            Err(error) => self.add(
                &what,
                State::Warning,
                format!("{error}; its agent may be down, or a firewall between"),
            ),
        }
    }
}

async fn reach(address: &str) -> Result<(), String> {
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!(
            "{address}: no answer within {} s",
            PATIENCE.as_secs()
        )),
    }
}

fn bpffs(bpf_dir: &Path) -> Result<String, String> {
    let place = bpf_dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    match statfs(place) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => {
            Ok(format!("{} is on a bpffs", bpf_dir.display()))
        }
        Ok(_) => Err(format!(
            "{} is not on a bpffs; mount one: mount -t bpf bpf /sys/fs/bpf",
            bpf_dir.display()
        )),
        Err(error) => Err(format!("{}: {error}", place.display())),
    }
}

/// What is to be said of a kernel outside the range that tests have booted.
fn untested(version: (u32, u32)) -> Option<String> {
    let [oldest, .., newest] = TESTED_KERNELS;
    let word = match version {
        version if version < oldest => "older",
        version if version > newest => "newer",
        _ => return None,
    };
    let list = TESTED_KERNELS.map(|(major, minor)| format!("{major}.{minor}"));
    Some(format!(
        "{word} than the kernels that handfast is tested on ({})",
        list.join(", ")
    ))
}

fn kernel_version() -> Option<(String, (u32, u32))> {
    let name = nix::sys::utsname::uname().ok()?;
    let text = name.release().to_str()?.to_owned();
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let version = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((text, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_remarked_on_when_no_test_has_booted_one_of_its_age() {
        assert!(untested((5, 15)).unwrap().starts_with("older than"));
        assert!(untested((7, 3)).unwrap().contains("6.1, 6.12, 6.18, 7.2"));
        for tested in TESTED_KERNELS.into_iter().chain([(6, 6)]) {
            assert_eq!(untested(tested), None);
        }
    }
}
