//! `handfast observe`: verdicts as they happen.

use clap::{Args, ValueEnum};
use handfast_agent::admin::{ObserveFilter, Observed, Request};

use crate::admin_socket::AdminSocket;
use crate::output::Format;

/// Verdicts of this node's gates, as they happen
///
/// Prints what the agent remembers, and with --follow goes on until it is interrupted. JSON is one document a
/// line.
#[derive(Debug, Args)]
pub struct ObserveArgs {
    #[command(flatten)]
    socket: AdminSocket,
    /// Only flows from an address, name or SPIFFE ID that contains this
    #[arg(long)]
    from: Option<String>,
    /// Only flows to an address, name or SPIFFE ID that contains this
    #[arg(long)]
    to: Option<String>,
    /// Only this verdict
    #[arg(long, value_enum)]
    verdict: Option<Verdict>,
    /// Go on as events happen
    #[arg(long, short)]
    follow: bool,
    /// How to print
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// The verdicts there are.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Verdict {
    /// A new flow passed
    Forwarded,
    /// A packet did not pass
    Dropped,
    /// A packet passed that a rule in audit mode would have stopped
    Audit,
    /// A packet waits for its pair's proof
    Held,
}

/// Runs the command.
pub async fn run(args: ObserveArgs) -> anyhow::Result<()> {
    let mut client = args.socket.connect().await?;
    let filter = ObserveFilter {
        from: args.from,
        to: args.to,
        verdict: args
            .verdict
            .and_then(|verdict| verdict.to_possible_value())
            .map(|value| value.get_name().to_owned()),
        follow: args.follow,
    };
    client.send(&Request::Observe(filter)).await?;
    loop {
        let next = tokio::select! {
            next = client.next::<Observed>() => next?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(event) = next else { return Ok(()) };
        match args.output {
            Format::Table => outln!("{}", line(&event)),
            Format::Json => outln!("{}", serde_json::to_string(&event)?),
            Format::Yaml => out!("---\n{}", serde_norway::to_string(&event)?),
        }
        if crate::output::is_over() {
            return Ok(());
        }
    }
}

fn line(event: &Observed) -> String {
    let end = |address: std::net::IpAddr, port: u16, identity: &Option<String>| {
        let place = match port {
            0 => address.to_string(),
            port => std::net::SocketAddr::new(address, port).to_string(),
        };
        match identity {
            Some(identity) => format!("{place} ({identity})"),
            None => place,
        }
    };
    let tuple = &event.tuple;
    let rule = match &event.rule {
        Some(rule) => format!(" rule={rule}"),
        None => String::new(),
    };
    format!(
        "{} {:<9} {} {} -> {} {} {}: {}{rule}",
        crate::output::timestamp_ms(event.time),
        event.verdict.to_uppercase(),
        tuple.protocol,
        end(tuple.source, tuple.source_port, &event.from),
        end(tuple.destination, tuple.destination_port, &event.to),
        event.gate,
        event.direction,
        event.reason,
    )
}
