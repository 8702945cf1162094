//! Gates of devices: tunnel, hold and underlay; and that they come first there.

use std::collections::BTreeSet;

use handfast_bpf as bpf;

use super::super::RunError;
use super::Gates;

impl Gates {
    /// Puts gates first again that somebody's program runs ahead of. Says which were.
    pub(in crate::shell) fn put_first(&self) -> Result<Vec<String>, RunError> {
        let found = self.kernel.put_first()?.into_iter();
        let told = found.map(|(found, refused)| {
            let (gate, interface) = (&found.attachment.program, &found.interface);
            let what = match &found.by {
                Some(other) => format!(
                    "program {other:?} was put ahead of our gate {gate} on {interface}: what it lets pass or redirects never met \
                     the gate; whoever attaches it must not put it first (`bpftool net show dev {interface}`)"
                ),
                None => format!("our gate {gate} was gone from {interface}"),
            };
            match refused {
                None => format!("{what}. The gate comes first again"),
                Some(error) => format!("{what}. It cannot be put first again: {error}"),
            }
        });
        Ok(told.collect())
    }

    /// Gates on the tunnel device.
    pub(in crate::shell) fn attach_tunnel(&self, ifindex: u32) -> Result<(), RunError> {
        Ok(self.kernel.attach_tunnel(ifindex)?)
    }

    /// A tunnel device that is gone, or about to go, is none of the gates' any more.
    pub(in crate::shell) fn detach_tunnel(&self, ifindex: u32) -> Result<(), RunError> {
        Ok(self.kernel.detach_tunnel(ifindex)?)
    }

    /// Gates on the hold device; from then on what is undecided is held.
    pub(in crate::shell) fn attach_hold(&self, ifindex: u32) -> Result<(), RunError> {
        Ok(self.kernel.attach_hold(ifindex)?)
    }

    /// The tripwire on these underlay interfaces (index and name). Those that went took theirs along.
    pub(in crate::shell) fn set_wires(
        &mut self,
        interfaces: BTreeSet<(u32, String)>,
    ) -> Result<(), RunError> {
        let mut outcome = Ok(());
        let mut watched = BTreeSet::new();
        for wire in interfaces {
            let known = self.wires.contains(&wire);
            match if known {
                Ok(())
            } else {
                self.kernel.attach_wire(wire.0)
            } {
                Ok(()) => {
                    if !known {
                        tracing::info!(interface = wire.1, "the tripwire watches");
                    }
                    watched.insert(wire);
                }
                // It went again meanwhile.
                Err(bpf::Error::NoInterface(_)) => {}
                // The others are watched all the same.
                Err(error) => outcome = outcome.and(Err(error.into())),
            }
        }
        self.wires = watched;
        outcome
    }

    /// No wire any more, but a workload's link: a CNI may have given it an address before anybody knew whose it is.
    pub(in crate::shell) fn unwatch(&mut self, ifindex: u32) -> Result<(), RunError> {
        self.wires.retain(|(index, _)| *index != ifindex);
        Ok(self.kernel.detach_wire(ifindex)?)
    }

    /// The interfaces that the tripwire watches.
    pub(in crate::shell) fn wire_indexes(&self) -> BTreeSet<u32> {
        self.wires.iter().map(|(index, _)| *index).collect()
    }

    /// How many interfaces the tripwire watches.
    pub(in crate::shell) fn wires(&self) -> usize {
        self.wires.len()
    }
}
