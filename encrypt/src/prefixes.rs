//! Prefixes of peers: in one form, and each with one holder.

use ipnet::IpNet;

use crate::{Error, PublicKey};

/// Network addresses only, sorted, each once.
pub(crate) fn normal(prefixes: &[IpNet]) -> Vec<IpNet> {
    let mut prefixes: Vec<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
    prefixes.sort();
    prefixes.dedup();
    prefixes
}

/// Refuses prefixes that overlap those of another peer.
pub(crate) fn check_free<'a>(
    wanted: &[IpNet],
    others: impl Iterator<Item = (&'a PublicKey, &'a [IpNet])>,
) -> Result<(), Error> {
    for (holder, held) in others {
        let taken = wanted
            .iter()
            .find(|prefix| held.iter().any(|held| overlap(held, prefix)));
        if let Some(prefix) = taken {
            return Err(Error::PrefixTaken {
                prefix: *prefix,
                holder: *holder,
            });
        }
    }
    Ok(())
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}
