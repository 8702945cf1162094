//! The readers of foreign bytes, for those who try to break them (`fuzz/`): entries of maps that an earlier agent, or anybody
//! else with the rights for it, has left, and what the kernel says of filters that others have put on a gate's hook.
//!
//! Nothing else calls these; they are the very functions that the tables are read with.

use handfast_layout::{Addr, PolicyKey, PolicyValue};
use ipnet::IpNet;

use crate::{EndpointId, filters, tables};

/// An entry of `policy`, if it is one that an agent writes.
#[must_use]
pub fn policy(
    bits: u32,
    key: PolicyKey,
    value: PolicyValue,
) -> Option<(EndpointId, crate::PolicyKey, crate::PolicyValue)> {
    tables::policy::entry(bits, key, value)
}

/// A key of `prefixes` or `cidrs`, if it is one that an agent writes.
#[must_use]
pub fn prefix(bits: u32, addr: Addr) -> Option<IpNet> {
    tables::net(bits, addr)
}

/// The handles of filters of the first preference that an answer of the kernel's names.
#[must_use]
pub fn filters(answer: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    // What was read before an end or an error counts.
    let _ = filters::read(answer, &mut found);
    found.into_iter().map(|filter| filter.handle).collect()
}
