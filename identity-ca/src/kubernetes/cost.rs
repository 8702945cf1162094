//! What a policy costs every node that has it: prefixes that the gates tell apart, and ranges of ports. Counted on the
//! object's own words, since the CA does not read policies.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

/// Where prefixes and addresses stand, in whatever kind of policy.
const PREFIXES: [&str; 4] = ["fromCIDR", "toCIDR", "cidr", "except"];
/// A range of ports, or one.
const PORT: &str = "port";

/// What one object costs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Distinct prefixes.
    pub(super) prefixes: BTreeSet<IpNet>,
    /// Ports and ranges of them, each as often as it is written.
    pub(super) ports: usize,
}

impl Cost {
    /// Counts. What is no prefix counts for nothing: whoever reads the policy refuses it.
    pub(super) fn of(object: &Value) -> Self {
        let mut cost = Self::default();
        let mut left = vec![object];
        while let Some(value) = left.pop() {
            match value {
                Value::Array(items) => left.extend(items),
                Value::Object(fields) => {
                    for (key, value) in fields {
                        if PREFIXES.contains(&key.as_str()) {
                            cost.take(value);
                        }
                        cost.ports += usize::from(key == PORT);
                        left.push(value);
                    }
                }
                _ => {}
            }
        }
        cost
    }

    fn take(&mut self, value: &Value) {
        let items = value
            .as_array()
            .map_or(std::slice::from_ref(value), Vec::as_slice);
        let texts = items.iter().filter_map(Value::as_str);
        self.prefixes.extend(texts.filter_map(|text| {
            let prefix = text.parse::<IpNet>().ok();
            prefix.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prefixes_count_once_wherever_they_stand_and_ports_as_often_as_they_do() {
        let cost = Cost::of(&json!({"spec": {
            "ingress": [
                {"fromCIDR": ["10.0.0.0/8", "192.0.2.1"], "toPorts": [{"ports": [{"port": "80"}, {"port": "81"}]}]},
                {"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}]},
            ],
            "egress": [{"to": [{"ipBlock": {"cidr": "2001:db8::/32"}}], "ports": [{"port": 443}]}],
        }}));
        assert_eq!((cost.prefixes.len(), cost.ports), (4, 3));
        assert_eq!(
            Cost::of(&json!({"spec": {"cidr": ["x", 7], "port": {}}})).ports,
            1
        );
    }
}
