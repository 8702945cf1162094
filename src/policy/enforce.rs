//! `handfast policy enforce`: audited rules require proofs from now on, if nobody would be cut by that.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use handfast_ca::client::admin::Admin;
use handfast_ca::model::{NodeObservations, PolicyDocument};
use handfast_policies::tools::enforce::{Demands, Readiness, SeenPair, Watched, judge, require};
use handfast_policies::{Authentication, PolicySet, Source};
use serde::Serialize;

use super::{documents, suffix};
use crate::ca::CaSocket;
use crate::output::{Format, OutputArgs, table};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast policy enforce shop/orders-db --dry-run\n  handfast policy enforce shop/orders-db --since 7d --least-flows 1000\n  handfast policy enforce CiliumNetworkPolicy/shop/web --force --reason \"its only client is retired\""
)]
pub(super) struct EnforceArgs {
    /// NAME, NAMESPACE/NAME or KIND/NAMESPACE/NAME, as `policy list` shows it
    name: String,
    /// How far back must have been watched, on every node
    #[arg(long, value_parser = humantime::parse_duration, default_value = "24h", value_name = "DURATION")]
    since: Duration,
    /// How many flows must have been seen in that time
    #[arg(long, default_value_t = 100, value_name = "NUMBER")]
    least_flows: u64,
    /// Require proofs although something stands against it; needs --reason
    #[arg(long, requires = "reason")]
    force: bool,
    /// Why; kept in the CA's audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Say what was seen and what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// The answer for programs.
#[derive(Serialize)]
struct Answer<'a> {
    policy: &'a str,
    ready: bool,
    enforced: bool,
    #[serde(flatten)]
    readiness: &'a Readiness,
}

pub(super) async fn run(args: &EnforceArgs, ca: &CaSocket) -> anyhow::Result<()> {
    let mut admin = ca.connect().await?;
    let document = find(&mut admin, &args.name).await?;
    let source = Source {
        name: document.name.clone(),
        text: document.text.clone(),
    };
    let errors = |errors: Vec<handfast_policies::ReadError>| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow!("{}; nothing was changed", lines.join("\n"))
    };
    let set = PolicySet::read(vec![source.clone()]).map_err(errors)?;
    ensure!(
        set.rules()
            .any(|(_, rule)| rule.authentication == Some(Authentication::Audit)),
        "{} has no rule with `authentication: {{mode: audit}}`, so there is nothing to enforce; nothing was changed",
        document.name
    );
    let readiness = weigh(&mut admin, &document, &set, args).await?;
    let ready = readiness.obstacles.is_empty();
    let in_cluster = documents::in_cluster(&document.name);
    let may = ready || args.force;
    let enforces = may && !args.dry_run && in_cluster.is_none();
    if enforces {
        let text = require(&source).map_err(errors)?;
        let reason = args.reason.as_deref().unwrap_or_default();
        admin
            .replace_policy(&document, text, reason)
            .await
            .context("the CA did not take it; nothing was changed")?;
    }
    let answer = Answer {
        policy: &document.name,
        ready,
        enforced: enforces,
        readiness: &readiness,
    };
    print(&answer, args)?;
    if let (Some(edit), true, false) = (in_cluster, may, args.dry_run) {
        bail!(
            "{} follows an object of the cluster, and nothing was changed: write `mode: required` for `mode: audit` there \
             ({edit})",
            document.name
        );
    }
    if !ready && !enforces {
        bail!(
            "{} stays in audit mode; nothing was changed (--force with --reason enforces all the same)",
            document.name
        );
    }
    Ok(())
}

async fn find(admin: &mut Admin, name: &str) -> anyhow::Result<PolicyDocument> {
    let stored = admin.policies().await?;
    let keys: Vec<_> = stored.iter().map(|policy| policy.name.as_str()).collect();
    let key = documents::find(&keys, name)?.to_owned();
    let found = stored.into_iter().find(|policy| policy.name == key);
    found.with_context(|| format!("there is no policy {name}; nothing was changed"))
}

async fn weigh(
    admin: &mut Admin,
    document: &PolicyDocument,
    set: &PolicySet,
    args: &EnforceArgs,
) -> anyhow::Result<Readiness> {
    let observed = admin.observations(&document.name).await?;
    let nodes = admin.nodes().await?;
    let joined = nodes.iter().filter(|node| {
        node.joined_at_ms.is_some() && !(node.evicted || node.banned || node.revoked)
    });
    let watched: Vec<Watched> = joined
        .map(|node| {
            let seen = observed.iter().find(|seen| seen.node == node.name);
            Watched {
                node: node.name.to_string(),
                between_ms: seen.map(|seen| (seen.since_ms, seen.heard_at_ms)),
                lost: seen.map_or(0, |seen| seen.lost),
            }
        })
        .collect();
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        });
    let back = u64::try_from(args.since.as_millis()).unwrap_or(u64::MAX);
    let demands = Demands {
        now_ms,
        since_ms: now_ms.saturating_sub(back),
        changed_at_ms: document.changed_at_ms,
        least_flows: args.least_flows,
    };
    let pairs: Vec<SeenPair> = observed.into_iter().flat_map(pairs).collect();
    let rules = set.rules().map(|(_, rule)| rule);
    Ok(judge(rules, &watched, &pairs, demands))
}

fn pairs(seen: NodeObservations) -> impl Iterator<Item = SeenPair> {
    let node = seen.node.to_string();
    seen.pairs.into_iter().map(move |pair| SeenPair {
        node: node.clone(),
        proven: pair.is_proven(),
        seen_at_ms: pair.seen_at_ms(),
        field: pair.field,
        source: pair.source,
        destination: pair.destination,
        flows: pair.flows,
        unproven: pair.unproven,
    })
}

fn print(answer: &Answer<'_>, args: &EnforceArgs) -> anyhow::Result<()> {
    if args.output.output != Format::Table {
        return args.output.print(answer, &[], []);
    }
    let rows = answer.readiness.rules.iter().map(|rule| {
        vec![
            rule.field.clone(),
            rule.line.to_string(),
            rule.flows.to_string(),
            rule.unproven.to_string(),
            rule.proven_pairs.to_string(),
            rule.unproven_pairs.len().to_string(),
        ]
    });
    let header = [
        "RULE",
        "LINE",
        "FLOWS",
        "UNPROVEN FLOWS",
        "PROVEN PAIRS",
        "UNPROVEN PAIRS",
    ];
    outln!("{}", table(&header, rows));
    for rule in &answer.readiness.unexercised {
        eprintln!("warning: nothing has exercised {rule}: nobody knows whom it would cut");
    }
    for warning in &answer.readiness.warnings {
        eprintln!("warning: {warning}");
    }
    for obstacle in &answer.readiness.obstacles {
        eprintln!("against it: {obstacle}");
    }
    if answer.enforced {
        outln!("{} requires proofs now", answer.policy);
    } else if answer.ready {
        outln!(
            "{} may require proofs{}",
            answer.policy,
            suffix(args.dry_run)
        );
    }
    Ok(())
}
