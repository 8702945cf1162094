//! Measures figures of SPECIFICATION.md: `make bench`, or `make bench GROUP=policy`.
//!
//! Prints a table and writes `bench/results.json` into the target directory. A figure that nothing here
//! measures is not in either: SPECIFICATION.md says which those are.

mod authority;
mod bare;
mod child;
mod crowd;
mod gate;
mod handshake;
mod identities;
mod kubernetes;
mod node;
mod policy;
mod report;
mod support;
mod tunnel;

#[allow(dead_code, reason = "shared with the tests")]
#[path = "../../../tests/kubernetes/cluster.rs"]
mod cluster;
#[allow(dead_code, reason = "shared with the demonstration and the tests")]
#[path = "../../../src/demo/harness/mod.rs"]
mod harness;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../../../tests/kubernetes/mesh.rs"]
mod mesh;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../../../tests/kubernetes/pod.rs"]
mod pod;

use std::process::ExitCode;

use anyhow::{Result, ensure};

use report::Figure;

/// A group's name and what measures it.
type Group = (&'static str, fn() -> Result<Vec<Figure>>);

// Policy first: it weighs memory, which others leave behind.
const GROUPS: &[Group] = &[
    ("policy", policy::measure),
    ("ca", authority::measure),
    ("ca", identities::measure),
    ("ca", crowd::measure),
    ("node", node::measure),
    ("gate", gate::measure),
    ("policy", kubernetes::measure),
    ("tunnel", tunnel::measure),
];

fn main() -> Result<ExitCode> {
    child::play()?;
    let wanted = std::env::args().nth(1);
    let groups: Vec<&Group> = GROUPS
        .iter()
        .filter(|(name, _)| wanted.as_deref().is_none_or(|wanted| wanted == *name))
        .collect();
    let names: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
    ensure!(
        !groups.is_empty(),
        "no figures of group {:?} are measured; there are: {}",
        wanted.unwrap_or_default(),
        names.join(", ")
    );
    let mut figures = Vec::new();
    for (name, measure) in groups {
        eprintln!("measuring {name} …");
        figures.extend(measure()?);
    }
    let path = report::write(&figures)?;
    report::print(&figures);
    println!("\nwritten to {}", path.display());
    let good = figures.iter().all(|figure| figure.ok);
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
