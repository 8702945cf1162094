//! From what policies say of two ends to entries of the map.

use std::collections::BTreeMap;

use handfast_bpf::{Auth, Direction, IdentityNumber, PolicyKey, PolicyValue, Ports, Verdict};
use handfast_policies::{
    self as policies, Authentication, Closed, Encryption, Entry, Remote, ports_to_prefixes,
};

use super::{Key, PolicyTable};
use crate::config::DefaultAuthentication;
use crate::endpoint::EndpointId;

impl PolicyTable {
    /// What is allowed where no policy closes a direction: everything, and between managed addresses as the default
    /// says. What lies outside the mesh has no identity and no tunnel: neither can be asked of it. Nobody known is who comes
    /// in clear while a node is joining: there is no tunnel yet.
    pub(super) fn open(
        &self,
        endpoint: EndpointId,
        identity: u32,
        closed: Closed,
        wanted: &mut BTreeMap<Key, PolicyValue>,
    ) {
        let (auth, encryption) = match IdentityNumber(identity) {
            IdentityNumber::ANY => (self.default_authentication(), true),
            IdentityNumber::UNKNOWN => (self.default_authentication(), false),
            IdentityNumber::HOST | IdentityNumber::WORLD => (Auth::Disabled, false),
            IdentityNumber(number) if number >= IdentityNumber::FIRST_CIDR.0 => {
                (Auth::Disabled, false)
            }
            _ => return,
        };
        for direction in [policies::Direction::Ingress, policies::Direction::Egress] {
            if closed.is(direction) {
                continue;
            }
            let packets = PolicyKey {
                direction: gate_direction(direction),
                identity: IdentityNumber(identity),
                ports: Ports::Any,
            };
            let value = PolicyValue {
                verdict: Verdict::Allow,
                auth,
                encryption,
                rule: 0,
            };
            wanted.insert(Key { endpoint, packets }, value);
        }
    }

    /// Ports by which people reach a machine that has closed itself. The longest prefix decides, and these are the
    /// longest there are.
    pub(super) fn keep_open(
        &self,
        endpoint: EndpointId,
        identity: u32,
        wanted: &mut BTreeMap<Key, PolicyValue>,
    ) {
        for exempt in self.exempt.get(&endpoint).into_iter().flatten() {
            let packets = PolicyKey {
                direction: Direction::Ingress,
                identity: IdentityNumber(identity),
                ports: Ports::Prefix {
                    protocol: exempt.protocol,
                    port: exempt.port,
                    bits: 16,
                },
            };
            let value = PolicyValue {
                verdict: Verdict::Allow,
                auth: Auth::Disabled,
                encryption: false,
                rule: 0,
            };
            wanted.insert(Key { endpoint, packets }, value);
        }
    }

    pub(super) fn remote_entries(
        &self,
        endpoint: EndpointId,
        identity: u32,
        entries: Vec<Entry>,
        wanted: &mut BTreeMap<Key, PolicyValue>,
    ) {
        let remote = self.matrix.remote(identity);
        let outside = matches!(remote, Some(Remote::Host | Remote::World | Remote::Cidr(_)));
        let in_clear = outside || matches!(remote, Some(Remote::Unknown));
        for entry in entries {
            let value = PolicyValue {
                verdict: match entry.verdict {
                    policies::Verdict::Allow => Verdict::Allow,
                    policies::Verdict::Deny => Verdict::Deny,
                },
                auth: match entry.auth {
                    Some(Authentication::Disabled) => Auth::Disabled,
                    Some(Authentication::Audit) => Auth::Audit,
                    Some(Authentication::Required) => Auth::Required,
                    Some(Authentication::TestAlwaysFail) => Auth::TestAlwaysFail,
                    None if outside => Auth::Disabled,
                    None => self.default_authentication(),
                },
                encryption: match entry.encryption {
                    Some(encryption) => encryption == Encryption::Required,
                    None => !in_clear,
                },
                rule: entry.rule.0,
            };
            for ports in gate_ports(&entry) {
                let packets = PolicyKey {
                    direction: gate_direction(entry.direction),
                    identity: IdentityNumber(identity),
                    ports,
                };
                wanted.insert(Key { endpoint, packets }, value);
            }
        }
    }

    fn default_authentication(&self) -> Auth {
        match self.default {
            DefaultAuthentication::Background => Auth::Disabled,
            DefaultAuthentication::Required => Auth::Required,
        }
    }
}

fn gate_direction(direction: policies::Direction) -> Direction {
    match direction {
        policies::Direction::Ingress => Direction::Ingress,
        policies::Direction::Egress => Direction::Egress,
    }
}

/// The map keys for an entry's protocol and ports: the fewest prefixes that cover a range.
fn gate_ports(entry: &Entry) -> Vec<Ports> {
    let Some(protocol) = entry.protocol.number() else {
        return vec![Ports::Any];
    };
    ports_to_prefixes(entry.ports)
        .into_iter()
        .map(|prefix| match prefix.length {
            0 => Ports::Protocol(protocol),
            bits => Ports::Prefix {
                protocol,
                port: prefix.port,
                bits,
            },
        })
        .collect()
}
