//! Measures figures of SPECIFICATION.md: `make bench`, or `make bench GROUP=policy`.
//!
//! Prints a table and writes `bench/results.json` into the target directory. A figure that nothing here
//! measures is not in either: SPECIFICATION.md says which those are.

mod authority;
mod bare;
mod child;
mod clock;
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

/// A group's name, with a part's after a slash where it has several, and what measures it.
type Group = (&'static str, fn() -> Result<Vec<Figure>>);

// Policy first: it weighs memory, which others leave behind.
const GROUPS: &[Group] = &[
    ("policy", policy::measure),
    ("ca/issue", authority::measure),
    ("ca/identities", identities::measure),
    ("ca/crowd", crowd::measure),
    ("node", node::measure),
    ("gate", gate::measure),
    ("gate/instructions", gate::instructions),
    ("policy/kubernetes", kubernetes::measure),
    ("tunnel", tunnel::measure),
];

fn main() -> Result<ExitCode> {
    child::play()?;
    let wanted = std::env::args().nth(1);
    let groups: Vec<&Group> = GROUPS
        .iter()
        .filter(|(name, _)| {
            let is = |wanted: &str| {
                let rest = name.strip_prefix(wanted);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            wanted.as_deref().is_none_or(is)
        })
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
        // Whatever becomes of the next group, these are had.
        report::write(&figures)?;
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
