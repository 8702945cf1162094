//! Whether our programs come first on their hooks. A program ahead of a gate that says "pass" or redirects ends the packet's way
//! there, and the gate never sees it.
//!
//! By tcx all programs run before those of clsact, so each gate is looked for where it was attached.

use std::path::Path;

use aya::programs::{
    SchedClassifier,
    links::{FdLink, PinnedLink},
};

use crate::{AttachError, Attachment, Error, attach, filters, link::Interface};

/// A gate that is not the first on its hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preceded {
    /// What is attached there.
    pub attachment: Attachment,
    /// Name of the interface.
    pub interface: String,
    /// The program that runs first; none if nothing of ours is there any more.
    pub by: Option<String>,
}

/// Whether a gate runs, and somebody's program ahead of it.
pub(crate) fn is_overtaken(
    interface: &Interface,
    gate: &attach::Gate,
    clsact: bool,
    pin: &Path,
) -> Result<bool, AttachError> {
    let running = running(interface, gate, clsact, pin)?;
    Ok(running.iter().any(Running::is_ours) && !is_first(&running))
}

/// All gates that do not come first. One whose interface is gone is in nobody's way.
pub(crate) fn look(links: &Path) -> Result<Vec<Preceded>, Error> {
    let mut found = Vec::new();
    for attachment in attach::list(links)? {
        let Some(gate) = attach::gate(&attachment.program) else {
            continue;
        };
        let Ok(interface) = Interface::find(attachment.ifindex) else {
            continue;
        };
        let pin = links.join(attachment.file());
        let running = running(&interface, gate, attachment.clsact, &pin);
        let running = running.map_err(|source| Error::Program {
            program: gate.program,
            source,
        })?;
        if !is_first(&running) {
            let there = running.iter().any(Running::is_ours);
            let first = running.into_iter().next().filter(|_| there);
            found.push(Preceded {
                attachment,
                interface: interface.name,
                by: first.and_then(Running::theirs),
            });
        }
    }
    Ok(found)
}

/// A program on a hook.
enum Running {
    Ours,
    Theirs(String),
}

impl Running {
    fn is_ours(&self) -> bool {
        matches!(self, Self::Ours)
    }

    fn theirs(self) -> Option<String> {
        match self {
            Self::Ours => None,
            Self::Theirs(name) => Some(name),
        }
    }
}

/// Whether the gate comes first.
fn is_first(running: &[Running]) -> bool {
    running.first().is_some_and(Running::is_ours)
}

/// The programs on a gate's hook, in the order in which they run.
fn running(
    interface: &Interface,
    gate: &attach::Gate,
    clsact: bool,
    pin: &Path,
) -> Result<Vec<Running>, AttachError> {
    let direction = gate.direction();
    if clsact {
        let filters = filters::list(interface.index, direction)?.into_iter();
        let running = filters.map(|filter| match attach::is_our_filter(&filter) {
            true => Running::Ours,
            false => Running::Theirs(filter.name.unwrap_or_else(without_a_name)),
        });
        return Ok(running.collect());
    }
    let (_, programs) = SchedClassifier::query_tcx(&interface.name, direction)?;
    // By its number: another's may have the same name.
    let ours = FdLink::from(PinnedLink::from_pin(pin)?)
        .info()?
        .program_id();
    let running = programs.iter().map(|program| match program.name_as_str() {
        _ if program.id() == ours => Running::Ours,
        name => Running::Theirs(name.map_or_else(without_a_name, str::to_owned)),
    });
    Ok(running.collect())
}

fn without_a_name() -> String {
    "without a name".to_owned()
}
