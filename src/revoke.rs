//! `handfast revoke`: cut now, on every node; listed, and reversible.

use std::time::{Duration, Instant};

use clap::Args;
use handfast_ca::NodeName;
use handfast_ca::client::admin::Admin;
use handfast_ca::model::{Node, Serial, Subject};
use serde::Serialize;

use crate::ca::CaSocket;
use crate::output::{Format, OutputArgs, timestamp};

/// Cut an identity, a node or one certificate: its packets stop on every node, live flows too
///
/// The identity is not issued any more until the revocation is undone.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast revoke --spiffe-id spiffe://example.org/web --reason 'key leaked'\n  handfast revoke --spiffe-id spiffe://example.org/web --undo --reason 'redeployed'\n  handfast revoke --list"
)]
pub struct RevokeArgs {
    #[command(flatten)]
    socket: CaSocket,
    #[command(flatten)]
    whom: Whom,
    /// Take it off the deny list again
    #[arg(long, conflicts_with = "list")]
    undo: bool,
    /// Why; kept in the deny list and in the CA's log
    #[arg(long, value_name = "TEXT", required_unless_present = "list", value_parser = crate::reason::read)]
    reason: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long, conflicts_with = "list")]
    dry_run: bool,
    /// Wait at most so long for the nodes to apply it, and say which have not
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = humantime::parse_duration)]
    wait: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Whom {
    /// An identity, on every node
    #[arg(long, value_name = "ID", value_parser = Subject::spiffe_id)]
    spiffe_id: Option<Subject>,
    /// A node, with all that it vouches for
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// One certificate, by its serial number in hexadecimal
    #[arg(long, value_name = "HEX")]
    serial: Option<Serial>,
    /// Print the deny list
    #[arg(long)]
    list: bool,
}

impl Whom {
    fn subject(&self) -> Option<Subject> {
        match (&self.spiffe_id, &self.node, &self.serial) {
            (Some(identity), _, _) => Some(identity.clone()),
            (_, Some(name), _) => Some(Subject::Node(name.clone())),
            (_, _, Some(serial)) => Some(Subject::Serial(serial.clone())),
            _ => None,
        }
    }
}

/// Runs the command.
pub async fn run(args: RevokeArgs) -> anyhow::Result<()> {
    let subject = args.whom.subject();
    let mut admin = args.socket.connect().await?;
    let Some(subject) = subject else {
        let (number, denials) = admin.revocations().await?;
        eprintln!("{}", applied(&admin.nodes().await?, number));
        return args.output.print(
            &denials,
            &["SUBJECT", "SINCE", "REASON"],
            denials.iter().map(|denial| {
                vec![
                    denial.subject.to_string(),
                    timestamp(denial.since_ms / 1000),
                    denial.reason.clone(),
                ]
            }),
        );
    };
    let reason = args.reason.unwrap_or_default();
    let listed = admin
        .revocations()
        .await?
        .1
        .iter()
        .any(|denial| denial.subject == subject);
    if args.dry_run {
        // What would be refused is not promised.
        anyhow::ensure!(
            listed || !args.undo,
            "there is no revocation of {:?}; nothing was changed",
            subject.to_string()
        );
        if let (Subject::Node(name), false) = (&subject, args.undo) {
            let known = admin.nodes().await?.iter().any(|node| node.name == *name);
            anyhow::ensure!(
                known,
                "there is no node {:?}; nothing was changed",
                name.to_string()
            );
        }
        let verb = if args.undo {
            "be taken off"
        } else {
            "be put on"
        };
        let now = if listed { "is on" } else { "is not on" };
        outln!("{subject} would {verb} the deny list (it {now} it now); nothing was changed");
        return Ok(());
    }
    let eyes = args.output.output == Format::Table;
    if args.undo {
        let number = admin.unrevoke(&subject, &reason).await?;
        if eyes {
            outln!("{subject} is allowed again by deny list {number}");
        }
        let nodes = follow(&mut admin, number, args.wait).await?;
        tell(&subject, false, number, &nodes, args.output)?;
    } else {
        let number = admin.revoke(&subject, &reason).await?;
        if eyes {
            outln!("{subject} is revoked by deny list {number}");
        }
        let nodes = follow(&mut admin, number, args.wait).await?;
        tell(&subject, true, number, &nodes, args.output)?;
        if let Subject::SpiffeId(id) = &subject
            && id.trust_domain().as_str() == admin.status().await?.trust_domain
            && !admin
                .entries()
                .await?
                .iter()
                .any(|entry| entry.spiffe_id == *id)
        {
            eprintln!("note: no entry has this SPIFFE ID now; is it spelled right?");
        }
    }
    Ok(())
}

/// What became of a revocation, for programs.
#[derive(Serialize)]
struct Told {
    subject: String,
    /// Or allowed again.
    revoked: bool,
    deny_list: u64,
    applied_on: Vec<String>,
    not_yet_on: Vec<String>,
}

fn tell(
    subject: &Subject,
    revoked: bool,
    number: u64,
    nodes: &[Node],
    output: OutputArgs,
) -> anyhow::Result<()> {
    if output.output == Format::Table {
        outln!("{}", applied(nodes, number));
        return Ok(());
    }
    let names = |nodes: Vec<&Node>| nodes.iter().map(|node| node.name.to_string()).collect();
    let (done, open) = split(nodes, number);
    let told = Told {
        subject: subject.to_string(),
        revoked,
        deny_list: number,
        applied_on: names(done),
        not_yet_on: names(open),
    };
    output.print(&told, &[], Vec::new())
}

/// Waits until all nodes have applied a deny list, or for so long; gives the nodes as they are then.
async fn follow(admin: &mut Admin, number: u64, wait: Duration) -> anyhow::Result<Vec<Node>> {
    let since = Instant::now();
    loop {
        let nodes = admin.nodes().await?;
        let done = nodes
            .iter()
            .filter(|node| counts(node))
            .all(|node| node.acknowledged >= number);
        if done || since.elapsed() >= wait {
            return Ok(nodes);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nodes that are to apply a deny list.
fn counts(node: &Node) -> bool {
    node.joined_at_ms.is_some() && !node.revoked && !node.banned && !node.evicted
}

/// Which nodes have applied a deny list, and which not.
fn split(nodes: &[Node], number: u64) -> (Vec<&Node>, Vec<&Node>) {
    nodes
        .iter()
        .filter(|node| counts(node))
        .partition(|node| node.acknowledged >= number)
}

/// The same in words, by name.
fn applied(nodes: &[Node], number: u64) -> String {
    let (done, open) = split(nodes, number);
    let all = done.len() + open.len();
    let mut text = format!(
        "deny list {number}: applied on {} of {all} nodes{}",
        done.len(),
        list(&done)
    );
    if !open.is_empty() {
        text += &format!("\nnot yet on {}{}", open.len(), list(&open));
    }
    text
}

/// The first names of many: a large mesh has `--output json` of `node list` for all.
fn list(nodes: &[&Node]) -> String {
    const NAMED: usize = 20;
    let mut names: Vec<String> = nodes
        .iter()
        .take(NAMED)
        .map(|node| node.name.to_string())
        .collect();
    if nodes.len() > NAMED {
        names.push(format!("{} more", nodes.len() - NAMED));
    }
    match names.is_empty() {
        true => String::new(),
        false => format!(": {}", names.join(", ")),
    }
}
