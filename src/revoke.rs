//! `handfast revoke`: cut now, on every node; listed, and reversible.

use clap::Args;
use handfast_ca::NodeName;
use handfast_ca::model::{Serial, Subject};

use crate::ca::CaSocket;
use crate::output::{OutputArgs, timestamp};

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
    #[arg(long, value_name = "TEXT", required_unless_present = "list")]
    reason: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long, conflicts_with = "list")]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Whom {
    /// An identity, on every node
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
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
    fn subject(&self) -> anyhow::Result<Option<Subject>> {
        Ok(match (&self.spiffe_id, &self.node, &self.serial) {
            (Some(id), _, _) => Some(Subject::spiffe_id(id)?),
            (_, Some(name), _) => Some(Subject::Node(name.clone())),
            (_, _, Some(serial)) => Some(Subject::Serial(serial.clone())),
            _ => None,
        })
    }
}

/// Runs the command.
pub async fn run(args: RevokeArgs) -> anyhow::Result<()> {
    let subject = args.whom.subject()?;
    let mut admin = args.socket.connect().await?;
    let Some(subject) = subject else {
        let (_, denials) = admin.revocations().await?;
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
        let verb = if args.undo {
            "be taken off"
        } else {
            "be put on"
        };
        let now = if listed { "is on" } else { "is not on" };
        println!("{subject} would {verb} the deny list (it {now} it now); nothing was changed");
        return Ok(());
    }
    if args.undo {
        let number = admin.unrevoke(&subject, &reason).await?;
        println!("{subject} is allowed again; deny list {number} is on its way to every node");
    } else {
        let number = admin.revoke(&subject, &reason).await?;
        println!("{subject} is revoked; deny list {number} is on its way to every node");
        if let Subject::SpiffeId(id) = &subject
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
