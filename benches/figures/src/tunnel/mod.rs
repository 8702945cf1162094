//! What a tunnel costs beside one that was set up by hand, and what is lost while its keys change.
//!
//! ENCRYPTION=ipsec measures IPsec, where the kernel has it; WireGuard otherwise. PART=rotation or ratio measures one
//! part.

mod by_hand;
mod rotation;
mod stream;

use anyhow::{Result, ensure};

use crate::harness::lab::Workload;
use crate::harness::requirements;
use crate::node::mesh::{Mesh, Wanted, addresses};
use crate::report::{Figure, Goal, figure};
use by_hand::ByHand;

/// The workloads' number on their nodes.
const INDEX: u8 = 3;
/// How long one round lasts, in seconds.
const ROUND: u32 = 3;
/// Interleaved rounds of each of the two.
const ROUNDS: usize = 7;

/// What carries the packets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    WireGuard,
    Ipsec,
}

impl Kind {
    fn chosen() -> Self {
        match std::env::var("ENCRYPTION").as_deref() {
            Ok("ipsec") => Self::Ipsec,
            _ => Self::WireGuard,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::WireGuard => "wireguard",
            Self::Ipsec => "ipsec",
        }
    }
}

/// All figures of tunnels.
pub fn measure() -> Result<Vec<Figure>> {
    let kind = Kind::chosen();
    let missing = requirements::missing_for(kind.word());
    ensure!(missing.is_empty(), "missing: {}", missing.join("; "));
    let wanted = std::env::var("PART").ok();
    let asked = |part: &str| wanted.as_deref().is_none_or(|wanted| wanted == part);
    let mut figures = Vec::new();
    if asked("ratio") {
        figures.push(ratio(kind)?);
    }
    if asked("rotation") {
        figures.extend(rotation::measure(kind)?);
    }
    Ok(figures)
}

/// Two nodes, and a workload on each.
pub struct Stage {
    pub mesh: Mesh,
    pub client: Workload,
    pub server: Workload,
}

impl Stage {
    pub fn build(kind: Kind) -> Result<Self> {
        let mut mesh = Mesh::start_with(2, &["--encryption", kind.word()])?;
        let client = mesh.lab.workload("client")?;
        let server = mesh.lab.workload("server")?;
        for (number, workload) in [(1, &client), (2, &server)] {
            let wanted = Wanted {
                workload,
                path: format!("tunnel/{}", workload.short),
                label: ("run", workload.short.clone()),
                index: INDEX,
            };
            mesh.attach(number, &[wanted])?;
        }
        let stage = Self {
            mesh,
            client,
            server,
        };
        stream::reach(&stage.client, &stage.address())?;
        Ok(stage)
    }

    /// The server's IPv4 address.
    pub fn address(&self) -> String {
        let addresses = addresses(2, INDEX);
        let first = addresses.iter().find(|address| address.is_ipv4());
        first.map(ToString::to_string).unwrap_or_default()
    }
}

fn ratio(kind: Kind) -> Result<Figure> {
    let stage = Stage::build(kind)?;
    let bare = ByHand::start(&stage.mesh.lab, kind)?;
    let ours = stream::Iperf::start(&stage.server)?;
    let theirs = stream::Iperf::start(&bare.server)?;
    let mut rounds = Vec::new();
    let mut seen = Vec::new();
    for round in 0..=ROUNDS {
        let with = ours.run(&stage.client, &stage.address(), ROUND)?;
        let without = theirs.run(&bare.client, &bare.address, ROUND)?;
        // The first warms up.
        if round > 0 {
            rounds.push(with / without);
            seen.push(with / 1e6);
        }
    }
    seen.sort_by(f64::total_cmp);
    let id = match kind {
        Kind::WireGuard => "tunnel.wg_ratio",
        Kind::Ipsec => "tunnel.esp_ratio",
    };
    let how = format!(
        "TCP through handfast's {} beside the same set up by hand on this kernel; {:.0} Mbit/s in the median",
        kind.word(),
        seen.get(seen.len() / 2).copied().unwrap_or_default()
    );
    figure(id, "ratio", Goal::AtLeast(0.97), rounds, &how)
}
