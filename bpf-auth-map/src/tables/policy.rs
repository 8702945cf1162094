//! Policy, entry by entry.

use aya::maps::lpm_trie::Key;
use handfast_layout as layout;

use super::Tables;
use crate::{
    Auth, Direction, EndpointId, Error, IdentityNumber, PolicyKey, PolicyValue, Ports, Verdict,
};

impl Tables {
    /// Adds or replaces some entries of an endpoint's policy: for an identity that has just become
    /// known. Call [`Tables::policy_changed`] if one of them takes something away.
    ///
    /// # Errors
    /// The map could not be written; entries before it are.
    pub fn add_policy(
        &self,
        endpoint: EndpointId,
        entries: &[(PolicyKey, PolicyValue)],
    ) -> Result<(), Error> {
        entries
            .iter()
            .try_for_each(|(key, value)| self.policy.set(&to_key(endpoint, key), &to_value(value)))
    }

    /// Removes one entry of an endpoint's policy. Call [`Tables::policy_changed`] afterwards.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_policy_entry(&self, endpoint: EndpointId, key: &PolicyKey) -> Result<(), Error> {
        self.policy.remove(&to_key(endpoint, key))
    }

    /// An endpoint's policy.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn policy(&self, endpoint: EndpointId) -> Result<Vec<(PolicyKey, PolicyValue)>, Error> {
        let all = self.policies()?.into_iter();
        let own = all.filter(|(of, ..)| *of == endpoint);
        Ok(own.map(|(_, key, value)| (key, value)).collect())
    }

    /// Every endpoint's policy. One pass over the map, which has no index: whoever wants several endpoints' asks for
    /// all.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn policies(&self) -> Result<Vec<(EndpointId, PolicyKey, PolicyValue)>, Error> {
        self.policy
            .understood(|key, value| entry(key.prefix_len(), key.data(), *value))
    }
}

/// An entry as an agent writes it; none for any other bytes.
pub(crate) fn entry(
    bits: u32,
    data: layout::PolicyKey,
    value: layout::PolicyValue,
) -> Option<(EndpointId, PolicyKey, PolicyValue)> {
    let (endpoint, key, read) = (
        EndpointId(data.endpoint),
        from_key(bits, data),
        from_value(value),
    );
    let written = to_key(endpoint, &key);
    let same = (written.prefix_len(), written.data()) == (bits, data) && to_value(&read) == value;
    same.then_some((endpoint, key, read))
}

fn to_key(endpoint: EndpointId, key: &PolicyKey) -> Key<layout::PolicyKey> {
    let (bits, proto, port) = match key.ports {
        Ports::Any => (layout::POLICY_BITS_ANY, 0, 0),
        Ports::Protocol(protocol) => (layout::POLICY_BITS_PROTO, protocol, 0),
        Ports::Prefix {
            protocol,
            port,
            bits,
        } => {
            let bits = bits.clamp(1, 16);
            let mask = u16::MAX << (16 - bits);
            (
                layout::POLICY_BITS_PROTO + u32::from(bits),
                protocol,
                port & mask,
            )
        }
    };
    let data = layout::PolicyKey {
        endpoint: endpoint.0,
        identity: key.identity.0,
        direction: key.direction.number(),
        proto,
        port: port.to_be(),
    };
    Key::new(bits, data)
}

fn from_key(bits: u32, data: layout::PolicyKey) -> PolicyKey {
    let ports = match bits.checked_sub(layout::POLICY_BITS_PROTO) {
        None => Ports::Any,
        Some(0) => Ports::Protocol(data.proto),
        Some(bits) => Ports::Prefix {
            protocol: data.proto,
            port: u16::from_be(data.port),
            bits: u8::try_from(bits).unwrap_or(16),
        },
    };
    PolicyKey {
        direction: Direction::from_number(data.direction),
        identity: IdentityNumber(data.identity),
        ports,
    }
}

fn to_value(value: &PolicyValue) -> layout::PolicyValue {
    layout::PolicyValue {
        verdict: match value.verdict {
            Verdict::Allow => layout::VERDICT_ALLOW,
            Verdict::Deny => layout::VERDICT_DENY,
        },
        auth: match value.auth {
            Auth::Disabled => layout::AUTH_DISABLED,
            Auth::Required => layout::AUTH_REQUIRED,
            Auth::Audit => layout::AUTH_AUDIT,
            Auth::TestAlwaysFail => layout::AUTH_TEST_FAIL,
        },
        encryption: u8::from(value.encryption),
        reserved: 0,
        rule: value.rule,
    }
}

fn from_value(value: layout::PolicyValue) -> PolicyValue {
    PolicyValue {
        verdict: if value.verdict == layout::VERDICT_ALLOW {
            Verdict::Allow
        } else {
            Verdict::Deny
        },
        auth: match value.auth {
            layout::AUTH_DISABLED => Auth::Disabled,
            layout::AUTH_REQUIRED => Auth::Required,
            layout::AUTH_AUDIT => Auth::Audit,
            _ => Auth::TestAlwaysFail,
        },
        encryption: value.encryption != 0,
        rule: value.rule,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_come_back_as_they_were() {
        let ports = [
            Ports::Any,
            Ports::Protocol(1),
            Ports::Prefix {
                protocol: 6,
                port: 80,
                bits: 16,
            },
            Ports::Prefix {
                protocol: 17,
                port: 0x8000,
                bits: 1,
            },
        ];
        for ports in ports {
            let identity = IdentityNumber(300);
            let key = PolicyKey {
                direction: Direction::Egress,
                identity,
                ports,
            };
            let raw = to_key(EndpointId(7), &key);
            assert_eq!(from_key(raw.prefix_len(), raw.data()), key);
        }
        for auth in [
            Auth::Disabled,
            Auth::Required,
            Auth::Audit,
            Auth::TestAlwaysFail,
        ] {
            let value = PolicyValue {
                verdict: Verdict::Deny,
                auth,
                encryption: true,
                rule: 9,
            };
            assert_eq!(from_value(to_value(&value)), value);
        }
    }

    #[test]
    fn a_port_prefix_keeps_only_the_bits_that_count() {
        let key = PolicyKey {
            direction: Direction::Ingress,
            identity: IdentityNumber::ANY,
            ports: Ports::Prefix {
                protocol: 6,
                port: 1025,
                bits: 6,
            },
        };
        let raw = to_key(EndpointId(1), &key);
        assert_eq!((raw.prefix_len(), raw.data().port), (86, 1024u16.to_be()));
    }
}
