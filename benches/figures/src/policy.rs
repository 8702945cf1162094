//! How long it takes to read and compile policies, and what they weigh.

use std::hint::black_box;

use anyhow::{Result, anyhow};
use handfast_policies::{PolicySet, Remote, Source, Workload};
use spiffe::SpiffeId;

use crate::report::{Figure, Goal, ROUNDS, cpu, figure, resident_mib};

/// Documents.
const POLICIES: usize = 5000;
/// Workloads of the node, each with policies of its own.
const LOCALS: usize = 50;
/// Identities that each of them is compiled against.
const REMOTES: usize = 100;

/// `policy.compile_5000_s` and `policy.rss_mib`.
pub fn measure() -> Result<Vec<Figure>> {
    let before = resident_mib()?;
    let locals: Vec<Workload> = (0..LOCALS).map(workload).collect::<Result<_>>()?;
    let remotes: Vec<Remote> = (0..REMOTES)
        .map(|number| Ok(Remote::Workload(workload(number)?)))
        .collect::<Result<_>>()?;
    let mut rounds = Vec::new();
    let mut weights = Vec::new();
    for round in 0..=ROUNDS {
        let sources = sources();
        let (taken, (set, entries)) = cpu(|| {
            let set = PolicySet::read(sources).map_err(|errors| anyhow!("{errors:?}"))?;
            let mut entries = Vec::new();
            for local in &locals {
                entries.extend(remotes.iter().map(|remote| set.entries(local, remote)));
            }
            Ok((set, entries))
        })?;
        if round > 0 {
            rounds.push(taken.as_secs_f64());
            weights.push(resident_mib()? - before);
        }
        black_box((set, entries));
    }
    let what = format!(
        "{POLICIES} CiliumNetworkPolicy documents of two rules, compiled for {LOCALS} workloads against {REMOTES} \
         identities"
    );
    Ok(vec![
        figure(
            "policy.compile_5000_s",
            "s",
            Goal::AtMost(1.0),
            rounds,
            &format!("processor time of {what}; one thread"),
        )?,
        figure(
            "policy.rss_mib",
            "MiB",
            Goal::AtMost(100.0),
            weights,
            &format!("resident memory added by {what}, sources included"),
        )?,
    ])
}

fn workload(number: usize) -> Result<Workload> {
    Ok(Workload {
        spiffe_id: SpiffeId::new(&format!("spiffe://example.org/app-{number}"))?,
        labels: [
            ("app".to_owned(), format!("app-{number}")),
            ("tier".to_owned(), format!("tier-{}", number % 5)),
        ]
        .into_iter()
        .collect(),
    })
}

fn sources() -> Vec<Source> {
    (0..POLICIES)
        .map(|number| Source {
            name: format!("policy-{number}.yaml"),
            text: format!(
                r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: policy-{number}
spec:
  endpointSelector:
    matchLabels:
      app: app-{}
  ingress:
  - fromEndpoints:
    - matchLabels:
        app: app-{}
    authentication:
      mode: required
    toPorts:
    - ports:
      - port: "{}"
        protocol: TCP
  - fromCIDR:
    - 192.0.2.{}/32
"#,
                number % (LOCALS * 10),
                number % REMOTES,
                1024 + number % 40000,
                number % 256
            ),
        })
        .collect()
}
