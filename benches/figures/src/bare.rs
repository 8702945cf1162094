//! A tunnel without gates, as a measure: two hosts of a lab, a workload behind each, WireGuard by hand between them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::harness::lab::{Host, Lab, Workload, underlay};
use crate::harness::process::{Process, command};
use crate::harness::wait;

const PORT: u16 = 51999;
/// Of the two hosts.
const NUMBERS: [u8; 2] = [21, 22];
/// The first workload's number on its host.
const FIRST: u8 = 3;
const SOON: Duration = Duration::from_secs(10);

/// Both ends. What is dropped first ends first.
pub struct Bare {
    /// In front of one tunnel.
    pub client: Workload,
    /// Behind the other.
    pub server: Workload,
    /// The server's address.
    pub address: IpAddr,
    _held: Held,
}

/// More clients and servers at a tunnel without gates: what is measured of many workloads is compared with as many.
pub struct Many {
    /// In front.
    pub clients: Vec<Workload>,
    /// Behind, each with its address.
    pub servers: Vec<(Workload, IpAddr)>,
}

/// What has to live as long as the tunnel.
pub struct Held {
    _daemons: Vec<Process>,
    hosts: [Host; 2],
    sockets: [PathBuf; 2],
}

impl Drop for Held {
    /// A daemon that is killed leaves its socket.
    fn drop(&mut self) {
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl Bare {
    /// The ends apart from what holds them up.
    pub fn into_parts(self) -> (Workload, Workload, IpAddr, Held) {
        (self.client, self.server, self.address, self._held)
    }

    /// Puts as many clients in front and servers behind.
    pub fn many(&self, lab: &Lab, count: u8) -> Result<Many> {
        let [front, behind] = &self._held.hosts;
        let mut many = Many {
            clients: Vec::new(),
            servers: Vec::new(),
        };
        for index in FIRST..FIRST.saturating_add(count) {
            let (client, _) = place(lab, front, NUMBERS[0], index)?;
            many.clients.push(client);
            let (server, address) = place(lab, behind, NUMBERS[1], index)?;
            many.servers.push((server, address.parse()?));
        }
        Ok(many)
    }

    /// Builds it in a lab.
    pub fn start(lab: &Lab) -> Result<Self> {
        let [one, two] = NUMBERS.map(|number| End::start(lab, number));
        let (one, two) = (one?, two?);
        one.meet(&two)?;
        two.meet(&one)?;
        let sockets = [&one, &two].map(|end| format!("/run/wireguard/{}.sock", end.device).into());
        let bare = Self {
            address: two.address.parse()?,
            client: one.workload,
            server: two.workload,
            _held: Held {
                sockets,
                _daemons: one.daemon.into_iter().chain(two.daemon).collect(),
                hosts: [one.host, two.host],
            },
        };
        wait::until("the tunnel without gates", SOON, || {
            let to = bare.address.to_string();
            let mut ping = command("ping", &["-c", "1", "-W", "1", &to]);
            let said = bare.client.place.run(&mut ping, SOON)?;
            Ok(said.status.success().then_some(()))
        })?;
        Ok(bare)
    }
}

/// A workload of a host.
fn place(lab: &Lab, host: &Host, number: u8, index: u8) -> Result<(Workload, String)> {
    let workload = lab.workload(&format!("w{number}-{index}"))?;
    let (link, address) = (format!("to-w{index}"), format!("10.78.{number}.{index}"));
    host.ns.ip(&format!(
        "link add {link} type veth peer name eth0 netns {}",
        workload.ns.name()
    ))?;
    host.ns.ip(&format!("link set {link} up"))?;
    host.ns.ip(&format!(
        "route add {address}/32 dev {link} src 10.78.{number}.1"
    ))?;
    workload.ns.ip(&format!("addr add {address}/32 dev eth0"))?;
    workload.ns.ip("link set eth0 up")?;
    let gateway = format!("10.78.{number}.1");
    workload.ns.ip(&format!("route add {gateway} dev eth0"))?;
    let default = format!("route add default via {gateway} mtu 1420");
    workload.ns.ip(&default)?;
    Ok((workload, address))
}

struct End {
    host: Host,
    workload: Workload,
    daemon: Option<Process>,
    device: String,
    address: String,
    number: u8,
    public: String,
}

impl End {
    fn start(lab: &Lab, number: u8) -> Result<Self> {
        let host = lab.host(&format!("b{number}"), number)?;
        host.ns
            .ip(&format!("addr add 10.78.{number}.1/32 dev lo"))?;
        let (workload, address) = place(lab, &host, number, FIRST - 1)?;
        let device = format!("{}w{number}", lab.name());
        let kernel = host.ns.ip(&format!("link add {device} type wireguard"));
        let daemon = match kernel {
            Ok(()) => None,
            Err(_) => {
                let mut program = command("wireguard-go", &["-f", &device]);
                Some(host.place.spawn(&format!("bare-{number}"), &mut program)?)
            }
        };
        let mut end = Self {
            host,
            workload,
            daemon,
            device,
            address,
            number,
            public: String::new(),
        };
        let key = end.run("wg", &["genkey"])?;
        let file = end.host.dir.join("key");
        std::fs::write(&file, key)?;
        let file = file.display().to_string();
        let port = PORT.to_string();
        let device = end.device.clone();
        wait::until("wireguard-go", SOON, || {
            let words = ["set", &device, "listen-port", &port, "private-key", &file];
            Ok(end.run("wg", &words).ok())
        })?;
        end.public = end.run("wg", &["show", &device, "public-key"])?;
        end.host.ns.ip(&format!("link set {device} mtu 1420 up"))?;
        Ok(end)
    }

    fn meet(&self, other: &Self) -> Result<()> {
        let range = format!("10.78.{}.0/24", other.number);
        let [v4, _] = underlay(other.number);
        let endpoint = format!("{v4}:{PORT}");
        let words = [
            "set",
            &self.device,
            "peer",
            other.public.trim(),
            "allowed-ips",
            &range,
            "endpoint",
            &endpoint,
        ];
        self.run("wg", &words)?;
        self.host
            .ns
            .ip(&format!("route add {range} dev {}", self.device))
    }

    fn run(&self, program: &str, words: &[&str]) -> Result<String> {
        let said = self.host.place.run(&mut command(program, words), SOON)?;
        Ok(said
            .success(program)
            .with_context(|| format!("{program} on {}", self.host.short))?
            .stdout)
    }
}
