//! Whether our programs come first on their hooks. A program ahead of a gate that says "pass" or redirects ends the packet's way
//! there, and the gate never sees it.
//!
//! Only tcx can be asked in one call, and by tcx all programs run before those of clsact: there a foreign filter of our own
//! preference that was added after ours is not seen.

use std::path::Path;

use aya::programs::{ProgramError, SchedClassifier, TcAttachType};

use crate::{Attachment, Error, attach, link::Interface};

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
) -> Result<bool, ProgramError> {
    let running = running(&interface.name, gate.direction())?;
    Ok(runs(&running, gate.program) && !is_first(&running, gate.program))
}

/// All gates that do not come first. One whose interface is gone is in nobody's way.
pub(crate) fn look(links: &Path) -> Result<Vec<Preceded>, Error> {
    let mut found = Vec::new();
    for attachment in attach::list(links)? {
        if attachment.clsact {
            continue;
        }
        let Some(gate) = attach::gate(&attachment.program) else {
            continue;
        };
        let Ok(interface) = Interface::find(attachment.ifindex) else {
            continue;
        };
        let running = running(&interface.name, gate.direction());
        let running = running.map_err(|source| Error::Program {
            program: gate.program,
            source: source.into(),
        })?;
        if !is_first(&running, gate.program) {
            let there = runs(&running, gate.program);
            found.push(Preceded {
                attachment,
                interface: interface.name,
                by: running.into_iter().next().filter(|_| there),
            });
        }
    }
    Ok(found)
}

/// Whether this program of ours is on the hook at all.
fn runs(running: &[String], program: &str) -> bool {
    running.iter().any(|name| name == program)
}

/// Whether this program of ours comes first.
fn is_first(running: &[String], program: &str) -> bool {
    running.first().is_some_and(|first| first == program)
}

/// Names of the programs on a hook, in their order.
fn running(interface: &str, direction: TcAttachType) -> Result<Vec<String>, ProgramError> {
    let (_, programs) = SchedClassifier::query_tcx(interface, direction)?;
    let name = |program: aya::programs::ProgramInfo| {
        program.name_as_str().unwrap_or("without a name").to_owned()
    };
    Ok(programs.into_iter().map(name).collect())
}
