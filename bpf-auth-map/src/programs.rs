//! The gates' programs, each loaded once. The verifier reads a gate for some tens of milliseconds, which neither a pod's
//! start nor an agent's restart on a node of many pods has time for; so a program is told its endpoint by a map.

use std::collections::{BTreeMap, btree_map::Entry};

use aya::programs::SchedClassifier;

use crate::{Error, Options, attach, attach::Gate, loader};

/// Programs in the kernel, by name and by length of the link header in front of the packets that they read.
#[derive(Default)]
pub(crate) struct Programs(BTreeMap<(&'static str, u32), SchedClassifier>);

impl Programs {
    /// A gate's program.
    pub(crate) fn get(
        &mut self,
        options: &Options,
        gate: &'static Gate,
        header_len: u32,
    ) -> Result<&mut SchedClassifier, Error> {
        match self.0.entry((gate.program, header_len)) {
            Entry::Occupied(loaded) => Ok(loaded.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(load(options, gate, header_len)?)),
        }
    }

    /// The same program once more: the kernel takes none twice on one hook.
    pub(crate) fn another(
        &mut self,
        options: &Options,
        gate: &'static Gate,
        header_len: u32,
    ) -> Result<&mut SchedClassifier, Error> {
        self.0.remove(&(gate.program, header_len));
        self.get(options, gate, header_len)
    }
}

fn load(options: &Options, gate: &Gate, header_len: u32) -> Result<SchedClassifier, Error> {
    let name = gate.program;
    let mut object = loader::load(options, header_len)?;
    let program = attach::find(&mut object, name)?;
    // Known by its number from here on: what it was read from is some megabytes.
    let loaded = program.load().and_then(|()| {
        let info = program.info()?;
        SchedClassifier::from_program_info(info, name.into())
    });
    loaded.map_err(|source| Error::Program {
        program: name,
        source: source.into(),
    })
}
