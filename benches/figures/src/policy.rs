//! How long it takes to read and compile policies, what a change costs, and what it all weighs.

use std::hint::black_box;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use handfast_policies::{Entry, Matrix, PolicySet, Remote, Source, Update, Workload};
use spiffe::SpiffeId;

use crate::report::{Figure, Goal, ROUNDS, cpu, figure, resident_mib};

/// Documents.
const POLICIES: usize = 500;
/// Pods of the cluster, each an identity of its own.
const PODS: usize = 5000;
/// Kinds of pod: those of one kind have the same labels, and one policy.
const KINDS: usize = 500;
/// Pods of the node whose policy is compiled: as many as a kubelet takes.
const LOCALS: usize = 110;

/// What a node keeps of what was compiled.
type Compiled = Vec<(usize, usize, Vec<Entry>)>;

/// `policy.compile_5000_s`, `policy.change_ms` and `policy.rss_mib`.
pub fn measure() -> Result<Vec<Figure>> {
    let before = resident_mib()?;
    let mut rounds = Vec::new();
    let mut changes = Vec::new();
    let mut weights = Vec::new();
    for round in 0..=ROUNDS {
        let (taken, (mut matrix, compiled)) = cpu(compile)?;
        let weight = resident_mib()? - before;
        let pairs = compiled.len();
        anyhow::ensure!(
            pairs > LOCALS * 8,
            "{pairs} pairs have entries: too few to mean anything"
        );
        let changed = [
            change_of_policy(&mut matrix, round)?,
            change_of_pod(&mut matrix, round)?,
            change_of_local(&mut matrix, round)?,
        ];
        if round > 0 {
            rounds.push(taken.as_secs_f64());
            weights.push(weight);
            changes.push(changed.into_iter().fold(0.0, f64::max));
        }
        black_box((matrix, compiled));
    }
    let what = format!(
        "{POLICIES} CiliumNetworkPolicy documents of three rules, compiled for the {LOCALS} pods of a node against \
         {PODS} pods, each an identity of its own"
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
            "policy.change_ms",
            "ms",
            Goal::AtMost(10.0),
            changes,
            &format!(
                "processor time of the dearest of three changes to {what}: a policy with another rule, read and \
                 compiled anew; a pod of another node that comes; a pod of this node that comes"
            ),
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

fn compile() -> Result<(Matrix<usize, usize>, Compiled)> {
    let set = PolicySet::read(sources(None)).map_err(|errors| anyhow!("{errors:?}"))?;
    let mut matrix = Matrix::default();
    matrix.replace(Arc::new(set));
    for number in 0..PODS {
        matrix.set_remote(number, Remote::Workload(pod(number)?));
    }
    let outside = [Remote::Host, Remote::World, Remote::Unknown];
    let outside = outside
        .into_iter()
        .chain(matrix.set().cidrs().into_iter().map(Remote::Cidr));
    for (number, remote) in outside.collect::<Vec<_>>().into_iter().enumerate() {
        matrix.set_remote(PODS + number, remote);
    }
    let mut compiled = Vec::new();
    for number in 0..LOCALS {
        keep(&mut compiled, matrix.set_local(number, pod(number)?));
    }
    Ok((matrix, compiled))
}

fn keep(compiled: &mut Compiled, update: Update<usize, usize>) {
    compiled.extend(
        update
            .pairs
            .into_iter()
            .filter(|(.., entries)| !entries.is_empty()),
    );
}

/// One policy's document gets another rule.
fn change_of_policy(matrix: &mut Matrix<usize, usize>, round: usize) -> Result<f64> {
    let sources = sources(Some(round % KINDS));
    let (taken, update) = cpu(|| {
        let set = matrix.set().updated(sources);
        let set = set.map_err(|errors| anyhow!("{errors:?}"))?;
        Ok(matrix.replace(Arc::new(set)))
    })?;
    anyhow::ensure!(!update.pairs.is_empty(), "the change concerns nobody");
    Ok(taken.as_secs_f64() * 1000.0)
}

/// A pod of another node comes.
fn change_of_pod(matrix: &mut Matrix<usize, usize>, round: usize) -> Result<f64> {
    let new = Remote::Workload(pod(PODS + round)?);
    let (taken, update) = cpu(|| Ok(matrix.set_remote(2 * PODS, new)))?;
    anyhow::ensure!(update.pairs.iter().any(|(.., entries)| !entries.is_empty()));
    Ok(taken.as_secs_f64() * 1000.0)
}

/// A pod of this node comes: everything about it is new.
fn change_of_local(matrix: &mut Matrix<usize, usize>, round: usize) -> Result<f64> {
    let new = pod(PODS + round)?;
    let (taken, update) = cpu(|| Ok(matrix.set_local(LOCALS, new)))?;
    anyhow::ensure!(update.pairs.len() > PODS);
    Ok(taken.as_secs_f64() * 1000.0)
}

fn pod(number: usize) -> Result<Workload> {
    let kind = number % KINDS;
    let labels = [
        ("app", format!("app-{kind}")),
        ("tier", format!("tier-{}", kind % 5)),
        ("pod", format!("pod-{number}")),
        (
            "io.kubernetes.pod.namespace",
            format!("namespace-{}", kind % 20),
        ),
    ];
    Ok(Workload {
        spiffe_id: SpiffeId::new(&format!("spiffe://example.org/ns/n/sa/app-{kind}"))
            .context("a SPIFFE ID")?,
        labels: labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
    })
}

/// A policy for each kind; one of them may have a rule more.
fn sources(changed: Option<usize>) -> Vec<Source> {
    (0..POLICIES)
        .map(|number| {
            let more = match changed {
                Some(changed) if changed == number => {
                    "  - fromEndpoints:\n    - matchLabels:\n        tier: tier-3\n"
                }
                _ => "",
            };
            Source {
                name: format!("policy-{number}.yaml"),
                text: format!(
                    r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: policy-{number}
spec:
  endpointSelector:
    matchLabels:
      app: app-{number}
  ingress:
  - fromEndpoints:
    - matchLabels:
        app: app-{caller}
    authentication:
      mode: required
    toPorts:
    - ports:
      - port: "{port}"
        protocol: TCP
  - fromEndpoints:
    - matchExpressions:
      - key: tier
        operator: In
        values: [tier-{tier}, tier-monitoring]
    toPorts:
    - ports:
      - port: "9100"
        protocol: TCP
  - fromCIDR:
    - 192.0.2.{address}/32
{more}"#,
                    caller = (number + 1) % KINDS,
                    port = 1024 + number,
                    tier = number % 5,
                    address = number % 16,
                ),
            }
        })
        .collect()
}
