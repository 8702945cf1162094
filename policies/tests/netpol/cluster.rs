//! The pods and policies of a scenario, and who reaches whom.
//!
//! What answers is not said here: whoever includes this has a `Judge` beside it.

use std::collections::BTreeMap;

use handfast_policies::{NAMED_PORT, Protocol, Source, Workload};
use spiffe::SpiffeId;

use super::Judge;

/// Pods by `namespace/name`, with the labels that they and their namespaces have.
pub type Pods = BTreeMap<String, Workload>;

/// One way of a packet from one end to the other, and whether it passes.
pub struct Way {
    /// What is said of it when it is not as expected.
    pub told: String,
    /// Whether it passes.
    pub passes: bool,
}

/// A cluster of one scenario.
pub struct Cluster {
    pods: Pods,
    policies: Vec<(String, String)>,
    /// None where nothing can be judged, which has been said.
    judge: Option<Judge>,
}

impl Cluster {
    pub fn new(pods: &[&str]) -> Self {
        let pod = |path: &&str| {
            let (namespace, name) = path.split_once('/').unwrap();
            let labels = [
                ("pod", name),
                ("io.kubernetes.pod.namespace", namespace),
                // What every namespace has since 1.22.
                (
                    "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name",
                    namespace,
                ),
                (&format!("{NAMED_PORT}serve-80-tcp"), "80"),
                (&format!("{NAMED_PORT}serve-81-tcp"), "81"),
            ];
            let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned()));
            let spiffe_id = SpiffeId::new(format!("spiffe://example.org/ns/{namespace}/{name}"));
            let workload = Workload {
                spiffe_id: spiffe_id.unwrap(),
                labels: labels.into(),
            };
            ((*path).to_owned(), workload)
        };
        let pods: Pods = pods.iter().map(pod).collect();
        Self {
            judge: Judge::new(&pods),
            pods,
            policies: Vec::new(),
        }
    }

    /// Creates a policy, or replaces the one of that name.
    pub fn policy(&mut self, namespace: &str, name: &str, spec: &str) {
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: \"{name}\", namespace: \
             {namespace}}}\nspec: {spec}\n"
        );
        let key = format!("{namespace}/{name}");
        self.policies.retain(|(known, _)| *known != key);
        self.policies.push((key, text));
    }

    /// Deletes all policies.
    pub fn clear(&mut self) {
        self.policies.clear();
    }

    /// Labels every pod whose path begins so.
    pub fn label(&mut self, pods: &str, key: &str, value: &str) {
        for (path, pod) in &mut self.pods {
            if path.starts_with(pods) {
                pod.labels.insert(key.to_owned(), value.to_owned());
            }
        }
    }

    /// Compares every pair of pods with what is expected of it.
    #[track_caller]
    pub fn expect(&mut self, protocol: Protocol, port: u16, reaches: impl Fn(&str, &str) -> bool) {
        let Some(judge) = Self::informed(&mut self.judge, &self.pods, &self.policies) else {
            return;
        };
        for from in self.pods.keys() {
            for to in self.pods.keys().filter(|to| *to != from) {
                for way in judge.ways(from, to, protocol, port) {
                    let wanted = reaches(from, to);
                    assert_eq!(
                        way.passes, wanted,
                        "{from} -> {to} {protocol} {port}: {}",
                        way.told
                    );
                }
            }
        }
    }

    /// Compares what becomes of a pod's flow to an address outside the mesh with what is expected of it.
    #[track_caller]
    pub fn expect_outside(&mut self, from: &str, to: &str, port: u16, passes: bool) {
        let Some(judge) = Self::informed(&mut self.judge, &self.pods, &self.policies) else {
            return;
        };
        let way = judge.outside(from, to.parse().unwrap(), port);
        assert_eq!(way.passes, passes, "{from} -> {to} {port}: {}", way.told);
    }

    fn informed<'a>(
        judge: &'a mut Option<Judge>,
        pods: &Pods,
        policies: &[(String, String)],
    ) -> Option<&'a mut Judge> {
        let source = |(name, text): &(String, String)| Source {
            name: name.clone(),
            text: text.clone(),
        };
        let judge = judge.as_mut()?;
        judge.learn(pods, policies.iter().map(source).collect());
        Some(judge)
    }
}
