//! `handfast operator`: who may administer the CA.

use clap::{Args, Subcommand};
use handfast_ca::model::Role;

use crate::ca::CaSocket;
use crate::output::{OutputArgs, timestamp};

/// Operators: who may administer the CA, and how far
///
/// Root and the owner of the CA's folder always may everything. An auditor looks, a registrar also makes tokens,
/// entries and policies, an admin also revokes, rotates, evicts, bans and names operators.
#[derive(Debug, Args)]
pub struct OperatorArgs {
    #[command(flatten)]
    socket: CaSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everybody with a role
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Give a role, instead of the one that they had
    #[command(
        after_help = "Examples:\n  handfast operator add uid:1001 --role auditor\n  handfast operator add spiffe://example.org/ops/alice --role registrar\n\nWho has an SVID may call from afar:\n  handfast entry list --ca ca.example.org:7251 --svid svid.pem --key key.pem --bundle bundle.pem"
    )]
    Add {
        /// uid:NUMBER on the CA's machine, or the SPIFFE ID of a workload
        name: String,
        /// auditor, registrar or admin
        #[arg(long, value_name = "ROLE")]
        role: Role,
        /// Why; kept in the CA's audit log
        #[arg(long, value_name = "TEXT", value_parser = crate::reason::read)]
        reason: Option<String>,
    },
    /// Take a role away; what they have under way is refused from the next call on
    Remove {
        /// As `operator list` shows it
        name: String,
        /// Why; kept in the CA's audit log
        #[arg(long, value_name = "TEXT", value_parser = crate::reason::read)]
        reason: String,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// Runs the command.
pub async fn run(args: OperatorArgs) -> anyhow::Result<()> {
    let mut admin = args.socket.connect().await?;
    match args.command {
        Command::List { output } => {
            let (operators, you, role) = admin.operators().await?;
            output.print(
                &operators,
                &["OPERATOR", "ROLE", "SINCE", "GIVEN BY"],
                operators.iter().map(|grant| {
                    vec![
                        grant.name.clone(),
                        grant.role.to_string(),
                        timestamp(grant.created_at_ms / 1000),
                        grant.created_by.clone(),
                    ]
                }),
            )?;
            eprintln!("you are {you}, {role}; root and the CA's owner are admin always");
            Ok(())
        }
        Command::Add { name, role, reason } => {
            let reason = reason.unwrap_or_default();
            let grant = admin.put_operator(&name, role, &reason).await?;
            outln!("{} is {} now", grant.name, grant.role);
            Ok(())
        }
        Command::Remove {
            name,
            reason,
            dry_run,
        } => {
            if dry_run {
                let (operators, ..) = admin.operators().await?;
                let found = operators.iter().find(|grant| grant.name == name);
                let grant = found.ok_or_else(|| anyhow::anyhow!("there is no operator {name}"))?;
                outln!(
                    "{name} would lose the role of {}; nothing was changed",
                    grant.role
                );
                return Ok(());
            }
            admin.remove_operator(&name, &reason).await?;
            outln!("{name} is no operator any more");
            Ok(())
        }
    }
}
