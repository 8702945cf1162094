//! What a tunnel costs beside one that was set up by hand, and what is lost while its keys change.
//!
//! ENCRYPTION=ipsec measures IPsec, where the kernel has it; WireGuard otherwise. PART=rotation or ratio measures one
//! part. What is promised is about the kernel's own tunnels, and measured in guests (`scripts/kernels/bench.sh`); elsewhere
//! what carries packets is wireguard-go, and its figures have names of their own.

mod by_hand;
mod rotation;
mod stream;

use anyhow::{Result, ensure};

use crate::clock::Clock;
use crate::harness::lab::Workload;
use crate::harness::requirements;
use crate::node::mesh::{Mesh, Wanted, addresses};
use crate::report::{Figure, Goal, figure};
use by_hand::ByHand;

/// The workloads' number on their nodes.
const INDEX: u8 = 3;
/// Interleaved rounds of each of the two, and how long one lasts, in seconds.
const ROUNDS: (usize, u32) = (7, 3);
/// The same by a clock that counts instructions: nothing disturbs it, and a second there takes ten here or more.
const COUNTED_ROUNDS: (usize, u32) = (5, 1);

/// What carries the packets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's.
    WireGuard,
    /// A program's.
    Userspace,
    Ipsec,
}

impl Kind {
    fn chosen(clock: Clock) -> Self {
        match std::env::var("ENCRYPTION").as_deref() {
            Ok("ipsec") => Self::Ipsec,
            _ if clock == Clock::Real => Self::Userspace,
            _ => Self::WireGuard,
        }
    }

    /// As the agent's `--encryption` has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::WireGuard | Self::Userspace => "wireguard",
            Self::Ipsec => "ipsec",
        }
    }

    /// What its throughput is called, and what is promised.
    fn ratio(self, clock: Clock) -> (&'static str, Goal) {
        let counted = clock == Clock::Instructions;
        match self {
            Self::WireGuard if counted => ("tunnel.wg_work_ratio", Goal::None),
            Self::WireGuard => ("tunnel.wg_ratio", Goal::AtLeast(0.97)),
            Self::Ipsec if counted => ("tunnel.esp_work_ratio", Goal::None),
            Self::Ipsec => ("tunnel.esp_ratio", Goal::AtLeast(0.97)),
            Self::Userspace => ("tunnel.userspace_ratio", Goal::None),
        }
    }
}

/// All figures of tunnels.
pub fn measure() -> Result<Vec<Figure>> {
    let clock = Clock::here()?;
    let kind = Kind::chosen(clock);
    let missing = requirements::missing_for(kind.word());
    ensure!(missing.is_empty(), "missing: {}", missing.join("; "));
    let wanted = std::env::var("PART").ok();
    let asked = |part: &str| wanted.as_deref().is_none_or(|wanted| wanted == part);
    let mut figures = Vec::new();
    if asked("ratio") {
        figures.push(ratio(kind, clock)?);
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

fn ratio(kind: Kind, clock: Clock) -> Result<Figure> {
    let stage = Stage::build(kind)?;
    let bare = ByHand::start(&stage.mesh.lab, kind)?;
    let ours = stream::Iperf::start(&stage.server)?;
    let theirs = stream::Iperf::start(&bare.server)?;
    let (count, seconds) = match clock {
        Clock::Instructions => COUNTED_ROUNDS,
        _ => ROUNDS,
    };
    let mut rounds = Vec::new();
    let mut seen = Vec::new();
    for round in 0..=count {
        let with = ours.run(&stage.client, &stage.address(), seconds)?;
        let without = theirs.run(&bare.client, &bare.address, seconds)?;
        // The first warms up.
        if round > 0 {
            rounds.push(with / without);
            seen.push(with / 1e6);
        }
    }
    seen.sort_by(f64::total_cmp);
    let median = seen.get(seen.len() / 2).copied().unwrap_or_default();
    let how = format!(
        "TCP through handfast's {} beside the same set up by hand, in turns on this kernel; {median:.0} Mbit/s in the median{}",
        kind.word(),
        match clock {
            Clock::Real => "",
            Clock::Emulated =>
                ", emulated: the ciphers hide what gates add, for which see gate.instructions_per_packet and the work ratio",
            Clock::Instructions =>
                ", by a clock that counts instructions: what all of both nodes executes for a byte by hand, over the same with \
                 handfast",
        }
    );
    let (id, goal) = kind.ratio(clock);
    figure(id, "ratio", goal, rounds, &how)
}
