//! `handfast policy explain`: what becomes of one flow, by which rule, and how its proof stands.

use std::path::PathBuf;

use clap::Args;
use handfast_agent::admin::{ClientError, Request, VerifyReport};
use handfast_policies::PolicySet;
use handfast_policies::tools::explain::{Explanation, explain};
use handfast_policies::tools::flow::{Flow, Outcome};
use handfast_policies::tools::inventory::{self, Inventory};
use serde::Serialize;

use super::input::{self, WorkloadArgs};
use crate::admin_socket::AdminSocket;
use crate::ca::CaSocket;
use crate::output::{Format, OutputArgs, table};
use crate::verify::{self, destination, settled};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast policy explain web db:5432\n  handfast policy explain app=web,tier=front 192.0.2.7:443 --policy policies/ --workloads workloads.yaml\n  handfast policy explain web db:8 --protocol icmp\n  handfast policy explain web db:5432 --proof        # on the node of web"
)]
pub(super) struct ExplainArgs {
    /// Who opens the flow: a workload's name or SPIFFE ID, an address, host, world, or labels such as app=web
    from: String,
    /// Toward whom, in the same words, and the port; of ICMP the type, such as web:8
    #[arg(value_name = "TO:PORT", value_parser = destination)]
    to: (String, u16),
    /// tcp, udp, sctp, icmp, icmpv6 or any
    #[arg(long, default_value = "tcp", value_parser = inventory::protocol)]
    protocol: handfast_policies::Protocol,
    /// Policies to go by; without any, those that the CA has in force
    #[arg(long, value_name = "FILE|DIR")]
    policy: Vec<PathBuf>,
    #[command(flatten)]
    workloads: WorkloadArgs,
    /// Ask this node's agent how the flow's session, announcement and pair stand, too; on a node from which the CA cannot
    /// be asked, only it is asked
    #[arg(long)]
    proof: bool,
    /// The agent's administrative socket
    #[arg(
        long,
        env = "HANDFAST_ADMIN_SOCKET",
        default_value = "/run/handfast/admin.sock",
        value_name = "PATH"
    )]
    agent_socket: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// The answer for programs.
#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    explanation: Option<Explanation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proof: Option<VerifyReport>,
}

pub(super) async fn run(args: &ExplainArgs, ca: &CaSocket) -> anyhow::Result<()> {
    let explanation = match known(args, ca).await {
        Ok((set, known)) => Some(explained(args, &set, &known)?),
        // The node's agent has the policies too, and says by which rules it judges.
        Err(error) if args.proof && args.policy.is_empty() => {
            eprintln!(
                "note: the CA cannot be asked here, so this is what the node's agent says ({error:#})"
            );
            None
        }
        Err(error) => return Err(error),
    };
    let proof = match args.proof {
        true => Some(ask(args).await),
        false => None,
    };
    let (proof, unknown) = match proof.transpose() {
        Ok(proof) => (proof, None),
        Err(error) => (None, Some(error)),
    };
    let answer = Answer { explanation, proof };
    match args.output.output {
        Format::Table => print(&answer),
        _ => args.output.print(&answer, &[], [])?,
    }
    match unknown {
        None => Ok(()),
        Some(error) => {
            let away = matches!(error.downcast_ref(), Some(ClientError::Connect { .. }));
            Err(error.context(match away {
                true => "how the proof stands is not known here: ask on the node of either end",
                false => "how the proof stands is not known",
            }))
        }
    }
}

/// The policies to go by, and who there is.
async fn known(args: &ExplainArgs, ca: &CaSocket) -> anyhow::Result<(PolicySet, Inventory)> {
    let set = input::policies(&args.policy, ca).await?;
    let known = if args.policy.is_empty() {
        args.workloads.read_or_ask(ca).await?
    } else {
        args.workloads.read()?
    };
    Ok((set, known))
}

fn explained(
    args: &ExplainArgs,
    set: &PolicySet,
    known: &Inventory,
) -> anyhow::Result<Explanation> {
    let end = |text: &str| known.end(text).map_err(anyhow::Error::msg);
    let flow = Flow {
        from: end(&args.from)?,
        to: end(&args.to.0)?,
        protocol: args.protocol,
        port: args.to.1,
    };
    Ok(explain(set, &flow))
}

async fn ask(args: &ExplainArgs) -> anyhow::Result<VerifyReport> {
    let request = Request::Verify {
        from: args.from.clone(),
        to: args.to.0.clone(),
        port: args.to.1,
        protocol: args.protocol.to_string(),
    };
    let agent = AdminSocket {
        admin_socket: args.agent_socket.clone(),
    };
    settled(&agent, &request).await
}

fn print(answer: &Answer) {
    if let Some(explanation) = &answer.explanation {
        print_explanation(explanation);
    }
    if let Some(proof) = &answer.proof {
        let rows = proof.checks.iter().map(verify::row);
        if answer.explanation.is_some() {
            outln!("");
        }
        outln!("{}", table(&["PROOF", "STATE", "DETAIL"], rows));
    }
}

fn print_explanation(explanation: &Explanation) {
    let Explanation {
        flow,
        outcome,
        authentication,
        ends,
    } = explanation;
    outln!("{flow}: {outcome}");
    for end in ends {
        let mark = if end.allowed { "allows" } else { "DENIES" };
        outln!(
            "\n{} ({}), {}: {mark}",
            end.end,
            end.spiffe_id,
            end.direction
        );
        outln!("  {}", end.why);
        for other in &end.others {
            outln!("  not decisive: {}: {}", other.rule, other.why);
        }
    }
    if ends.is_empty() {
        outln!("\nneither end is a workload of the mesh, so no policy is asked");
    }
    if authentication.is_none() && *outcome != Outcome::Denied {
        outln!("\nno rule speaks of authentication: the agents' --default-authentication holds");
    }
    if flow.starts_with("host ->") {
        outln!(
            "\npackets that the node itself makes reach its own workloads whatever policy says, unless its agent \
             is told otherwise"
        );
    }
}
