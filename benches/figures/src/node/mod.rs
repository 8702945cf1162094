//! What a node costs and how fast it is. All but the proofs' cost is measured on real agents and tunnels, in network
//! namespaces of this machine.
//!
//! PART=first, load, revoke, flood or proofs measures one part.

mod connect;
mod first;
mod flood;
mod load;
pub mod mesh;
mod proofs;
mod revoke;

use anyhow::{Result, ensure};

use crate::harness::requirements;
use crate::report::Figure;

/// A part's name and what measures it.
type Part = (&'static str, fn() -> Result<Vec<Figure>>);

const PARTS: &[Part] = &[
    ("proofs", proofs::measure),
    ("load", load::measure),
    ("first", first::measure),
    ("flood", flood::measure),
    ("revoke", revoke::measure),
];

/// All figures of a node.
pub fn measure() -> Result<Vec<Figure>> {
    let wanted = std::env::var("PART").ok();
    let missing = requirements::missing();
    ensure!(missing.is_empty(), "missing: {}", missing.join("; "));
    let mut figures = Vec::new();
    for (name, measure) in PARTS {
        if wanted.as_deref().is_none_or(|wanted| wanted == *name) {
            figures.extend(measure()?);
        }
    }
    Ok(figures)
}
