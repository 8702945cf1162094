//! How much of the registry, and of every node's tables, one namespace and one policy may take.

use std::collections::{BTreeMap, HashMap, HashSet};

use ipnet::IpNet;

use super::object::{Key, Object};

/// Policies, and bytes of them, of one namespace; and of the cluster, within what the registry holds.
const SHARE: (usize, usize) = (1000, 4 << 20);
const ALL: (usize, usize) = (9000, 24 << 20);
/// Distinct prefixes of one namespace, and of the cluster: each is told apart on every node.
const PREFIXES: (usize, usize) = (1000, 16_000);
/// Ports and ranges of one policy.
const PORTS: usize = 2048;

/// What goes beyond a namespace's share, or beyond all that the registry holds: nobody takes the room of the others.
/// What is in force already stays before what is new.
pub(super) fn too_many(
    objects: &BTreeMap<String, (&Key, &Object)>,
    in_force: &HashMap<String, String>,
) -> Vec<(String, String)> {
    let mut order: Vec<_> = objects.iter().collect();
    order.sort_by_key(|(name, _)| !in_force.contains_key(*name));
    let mut all = Share::default();
    let mut shares: HashMap<Option<&String>, Share> = HashMap::new();
    let mut refused = Vec::new();
    for (name, (key, object)) in order {
        let share = shares.entry(key.namespace.as_ref()).or_default();
        let over = (object.cost.ports > PORTS)
            .then(|| {
                format!(
                    "it names {} ports and ranges; at most {PORTS}",
                    object.cost.ports
                )
            })
            .or_else(|| share.over(object, SHARE, PREFIXES.0, "a namespace has"))
            .or_else(|| all.over(object, ALL, PREFIXES.1, "the cluster has"));
        match over {
            Some(why) => refused.push((name.clone(), why)),
            None => {
                share.take(object);
                all.take(object);
            }
        }
    }
    refused
}

/// What is taken already.
#[derive(Default)]
struct Share<'a> {
    policies: usize,
    bytes: usize,
    prefixes: HashSet<&'a IpNet>,
}

impl<'a> Share<'a> {
    /// Why an object has no room in it, if it has none.
    fn over(
        &self,
        object: &Object,
        (policies, bytes): (usize, usize),
        prefixes: usize,
        whose: &str,
    ) -> Option<String> {
        if self.policies >= policies || self.bytes + object.text.len() > bytes {
            return Some(format!(
                "{whose} at most {policies} policies of {} MiB in all",
                bytes >> 20
            ));
        }
        let more = object.cost.prefixes.iter();
        let more = more
            .filter(|prefix| !self.prefixes.contains(prefix))
            .count();
        (self.prefixes.len() + more > prefixes)
            .then(|| format!("{whose} at most {prefixes} distinct prefixes in its policies"))
    }

    fn take(&mut self, object: &'a Object) {
        self.policies += 1;
        self.bytes += object.text.len();
        self.prefixes.extend(&object.cost.prefixes);
    }
}

#[cfg(test)]
mod tests {
    use kube::api::DynamicObject;
    use serde_json::{Value, json};

    use super::super::config::PolicyKind;
    use super::*;

    fn policy(namespace: &str, name: &str, spec: Value) -> (Key, Object) {
        let kind = PolicyKind::HandfastPolicy;
        let object = json!({
            "apiVersion": "handfast.io/v1alpha1", "kind": "HandfastPolicy", "spec": spec,
            "metadata": {"name": name, "namespace": namespace, "uid": name},
        });
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        (kind.key(&object).unwrap(), kind.read(&object).unwrap())
    }

    fn refused(all: &[(Key, Object)], in_force: &[&str]) -> Vec<(String, String)> {
        let objects = all
            .iter()
            .map(|(key, object)| (key.document(), (key, object)));
        let in_force = in_force
            .iter()
            .map(|name| ((*name).to_owned(), String::new()));
        too_many(&objects.collect(), &in_force.collect())
    }

    fn prefixes(numbers: std::ops::Range<usize>) -> Value {
        let texts = numbers.map(|number| format!("10.{}.{}.1/32", number >> 8, number & 255));
        json!({"egress": [{"toCIDR": texts.collect::<Vec<_>>()}]})
    }

    #[test]
    fn no_namespace_makes_every_node_tell_more_prefixes_apart_than_its_share() {
        let many = [
            policy("a", "first", prefixes(0..900)),
            policy("a", "same", prefixes(0..900)),
            policy("a", "more", prefixes(900..1100)),
            policy("b", "other", prefixes(900..1100)),
        ];
        let found = refused(&many, &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0.ends_with("/a/more") && found[0].1.contains("1000 distinct prefixes"));
        // What is in force goes before what is new, whatever its name.
        let standing = many[2].0.document();
        let found = refused(&many, &[&standing]);
        assert!(found.iter().all(|(name, _)| *name != standing), "{found:?}");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_policy_of_too_many_ports_is_refused_and_the_others_are_not() {
        let ports = |count: usize| {
            let ports: Vec<_> = (0..count)
                .map(|port| json!({"port": port.to_string()}))
                .collect();
            json!({"ingress": [{"toPorts": [{"ports": ports}]}]})
        };
        let all = [
            policy("a", "few", ports(2048)),
            policy("a", "many", ports(2049)),
        ];
        let found = refused(&all, &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0.ends_with("/a/many") && found[0].1.contains("2049 ports"));
    }
}
