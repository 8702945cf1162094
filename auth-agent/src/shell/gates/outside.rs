//! What lies outside of the mesh: the prefixes that rules name, the node's own addresses, and nodes that are joining.

use std::collections::BTreeSet;

use handfast_bpf as bpf;
use ipnet::IpNet;

use super::super::RunError;
use super::Gates;

impl Gates {
    /// The prefixes that rules name, as they stand.
    pub(in crate::shell) fn cidrs(&self) -> impl Iterator<Item = (IpNet, u32)> {
        let rules = |number: &u32| *number >= bpf::IdentityNumber::FIRST_CIDR.0;
        self.cidrs
            .iter()
            .filter(move |(_, number)| rules(number))
            .map(|(prefix, number)| (*prefix, *number))
    }

    /// The prefixes that rules name, exactly these.
    pub(in crate::shell) fn write_cidrs(
        &mut self,
        wanted: impl Iterator<Item = (IpNet, u32)>,
    ) -> Result<(), RunError> {
        self.rules = wanted.collect();
        self.write_outside()
    }

    /// The node's own addresses: to its workloads they are the host, not the world.
    pub(in crate::shell) fn set_hosts(
        &mut self,
        addresses: BTreeSet<IpNet>,
    ) -> Result<(), RunError> {
        self.hosts = addresses;
        self.write_outside()
    }

    /// Writes all that can be written; what is refused is tried again the next time.
    fn write_outside(&mut self) -> Result<(), RunError> {
        let mut wanted = self.rules.clone();
        let host = bpf::IdentityNumber::HOST.0;
        wanted.extend(self.hosts.iter().map(|address| (*address, host)));
        let mut first = Ok(());
        for (prefix, identity) in &wanted {
            if self.cidrs.get(prefix) != Some(identity) {
                let number = bpf::IdentityNumber(*identity);
                match self.tables().set_cidr(*prefix, number) {
                    Ok(()) => drop(self.cidrs.insert(*prefix, *identity)),
                    Err(error) => first = first.and(Err(error.into())),
                }
            }
        }
        let known = self.cidrs.keys().copied();
        let gone: Vec<IpNet> = known.filter(|p| !wanted.contains_key(p)).collect();
        for prefix in gone {
            match self.tables().remove_cidr(prefix) {
                Ok(()) => drop(self.cidrs.remove(&prefix)),
                Err(error) => first = first.and(Err(error.into())),
            }
        }
        first
    }

    /// The prefixes of nodes that are joining, all of them each time.
    pub(in crate::shell) fn set_joining(&self, prefixes: &[IpNet]) -> Result<(), RunError> {
        Ok(self.tables().set_joining(prefixes)?)
    }
}
