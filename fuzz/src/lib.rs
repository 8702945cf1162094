//! One function for every parser of foreign bytes, and examples to start from.
//!
//! Two drivers share them: cargo-fuzz (`make fuzz`), which follows coverage and needs a nightly compiler, and
//! `auth-agent/tests/foreign_bytes.rs`, which mutates the examples at random with a fixed seed on every
//! `make test`. A function returns if all is well, and panics if a property does not hold.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code
)]

mod adopted;
mod answers;
mod audit;
mod authority;
mod backups;
mod bundles;
mod certificates;
mod entry_files;
mod events;
mod frames;
mod journals;
mod packets;
mod policies;
mod policy_files;
mod proofs;

/// A parser under test.
pub struct Target {
    /// Its name, which is that of its file in `fuzz_targets/` too.
    pub name: &'static str,
    /// Feeds it.
    pub run: fn(&[u8]),
    /// Well-formed inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "frames",
        run: frames::run,
        seeds: frames::seeds,
    },
    Target {
        name: "authenticators",
        run: proofs::run,
        seeds: proofs::seeds,
    },
    Target {
        name: "adopted",
        run: adopted::run,
        seeds: adopted::seeds,
    },
    Target {
        name: "answers",
        run: answers::run,
        seeds: answers::seeds,
    },
    Target {
        name: "audit",
        run: audit::run,
        seeds: audit::seeds,
    },
    Target {
        name: "authority",
        run: authority::run,
        seeds: authority::seeds,
    },
    Target {
        name: "backups",
        run: backups::run,
        seeds: backups::seeds,
    },
    Target {
        name: "bundles",
        run: bundles::run,
        seeds: bundles::seeds,
    },
    Target {
        name: "certificates",
        run: certificates::run,
        seeds: certificates::seeds,
    },
    Target {
        name: "entry_files",
        run: entry_files::run,
        seeds: entry_files::seeds,
    },
    Target {
        name: "events",
        run: events::run,
        seeds: events::seeds,
    },
    Target {
        name: "packets",
        run: packets::run,
        seeds: packets::seeds,
    },
    Target {
        name: "journals",
        run: journals::run,
        seeds: journals::seeds,
    },
    Target {
        name: "policies",
        run: policies::run,
        seeds: policies::seeds,
    },
    Target {
        name: "policy_files",
        run: policy_files::run,
        seeds: policy_files::seeds,
    },
];

/// Feeds the target of that name.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of that name").run)(data);
}
