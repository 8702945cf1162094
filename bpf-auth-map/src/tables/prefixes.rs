//! Whose an address is: a node's prefix, or one that a rule names.

use aya::maps::lpm_trie::Key;
use handfast_layout::{self as layout, Addr};
use ipnet::IpNet;

use super::{Tables, raw, set_flag};
use crate::{
    Error, IdentityNumber, PeerNumber,
    types::{to_addr, to_ip},
};

impl Tables {
    /// Makes a prefix managed: it is this node's, by [`PeerNumber::LOCAL`].
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_prefix(&self, prefix: IpNet, peer: PeerNumber) -> Result<(), Error> {
        let joining = raw::lock(&self.joining);
        let is_joining = joining.contains(&prefix.trunc());
        self.write_prefix(prefix, peer, is_joining)?;
        match peer {
            PeerNumber::LOCAL => self.set_self_joining(is_joining),
            _ => Ok(()),
        }
    }

    /// Says which prefixes' nodes are joining: all of them, each time. Cleartext from those and to them is counted
    /// under [`Reason::WireJoining`] instead of being dropped, at once; prefixes that are set later keep to it too.
    ///
    /// # Errors
    /// The map could not be read or written; what was not reached stays as it was until the next call.
    pub fn set_joining(&self, prefixes: &[IpNet]) -> Result<(), Error> {
        let mut joining = raw::lock(&self.joining);
        *joining = prefixes.iter().map(IpNet::trunc).collect();
        // What the gates have counts, not what was asked for before: that may not have been reached.
        let all = self.prefixes.all(|key, value| {
            let is_joining = value.flags & layout::PREFIX_JOINING != 0;
            net(key.prefix_len(), key.data()).map(|net| (net, PeerNumber(value.peer), is_joining))
        })?;
        let mut is_self = false;
        for (prefix, peer, is_joining) in all.into_iter().flatten() {
            let wanted = joining.contains(&prefix);
            is_self |= wanted && peer == PeerNumber::LOCAL;
            if is_joining != wanted {
                self.write_prefix(prefix, peer, wanted)?;
            }
        }
        self.set_self_joining(is_self)
    }

    /// What a gate of a workload reads instead of looking its own node's prefix up.
    fn set_self_joining(&self, joining: bool) -> Result<(), Error> {
        let is_set = self.config()?.flags & layout::SELF_JOINING != 0;
        if is_set == joining {
            return Ok(());
        }
        self.change_config(|config| set_flag(config, layout::SELF_JOINING, joining))
    }

    fn write_prefix(&self, prefix: IpNet, peer: PeerNumber, joining: bool) -> Result<(), Error> {
        let value = layout::Prefix {
            peer: peer.0,
            flags: if joining { layout::PREFIX_JOINING } else { 0 },
        };
        self.changing(|| self.prefixes.set(&net_key(prefix), &value))
    }

    /// Forgets a prefix.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_prefix(&self, prefix: IpNet) -> Result<(), Error> {
        self.changing(|| self.prefixes.remove(&net_key(prefix)))
    }

    /// All prefixes.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn prefixes(&self) -> Result<Vec<(IpNet, PeerNumber)>, Error> {
        self.prefixes.understood(|key, value| {
            net(key.prefix_len(), key.data()).map(|net| (net, PeerNumber(value.peer)))
        })
    }

    /// Gives a CIDR outside the mesh an identity, so that rules can name it.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_cidr(&self, cidr: IpNet, identity: IdentityNumber) -> Result<(), Error> {
        self.cidrs.set(&net_key(cidr), &identity.0)
    }

    /// Forgets a CIDR.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_cidr(&self, cidr: IpNet) -> Result<(), Error> {
        self.cidrs.remove(&net_key(cidr))
    }

    /// All CIDRs.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn cidrs(&self) -> Result<Vec<(IpNet, IdentityNumber)>, Error> {
        self.cidrs.understood(|key, identity| {
            net(key.prefix_len(), key.data()).map(|net| (net, IdentityNumber(*identity)))
        })
    }
}

/// IPv4 prefixes lie in the last 32 of the 128 bits.
fn net_key(net: IpNet) -> Key<Addr> {
    let bits = u32::from(net.prefix_len());
    let bits = if net.addr().is_ipv4() {
        96 + bits
    } else {
        bits
    };
    Key::new(bits, to_addr(net.network()))
}

/// A prefix as an agent writes it; none for any other bytes.
pub(crate) fn net(bits: u32, addr: Addr) -> Option<IpNet> {
    let ip = to_ip(addr);
    let length = if ip.is_ipv4() {
        bits.checked_sub(96)?
    } else {
        bits
    };
    let net = IpNet::new(ip, u8::try_from(length).ok()?).ok()?;
    let written = net_key(net);
    ((written.prefix_len(), written.data()) == (bits, addr)).then_some(net)
}
