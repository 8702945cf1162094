//! `handfast verify`: one flow, link by link.

use std::time::{Duration, Instant};

use clap::Args;
use handfast_agent::admin::{Request, VerifyCheck, VerifyReport, VerifyState};

use crate::admin_socket::AdminSocket;
use crate::output::OutputArgs;

/// How long a proof may take before the flow counts as not proven.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(100);

/// Prove one flow: identities, rule, pair, tunnel, on both nodes
///
/// Run on the node of either end; the other node is asked how the flow stands there. Nothing is guessed: what cannot be
/// seen, or is not told, is said to be unknown, and the command succeeds only if every link of the chain holds.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    socket: AdminSocket,
    /// Who opens the flow: a workload's name, address or SPIFFE ID
    from: String,
    /// The other end: address, name or SPIFFE ID, then a colon and the port
    #[arg(value_name = "TO:PORT", value_parser = destination)]
    to: (String, u16),
    /// The protocol; of ICMP the port is the type of the message that opens the flow
    #[arg(long, default_value = "tcp", ignore_case = true, value_parser = ["tcp", "udp", "sctp", "icmp", "icmpv6"])]
    protocol: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub async fn run(args: VerifyArgs) -> anyhow::Result<()> {
    let request = Request::Verify {
        from: args.from,
        to: args.to.0,
        port: args.to.1,
        protocol: args.protocol,
    };
    let report = settled(&args.socket, &request).await?;
    args.output.print(
        &report,
        &["CHECK", "STATE", "DETAIL"],
        report.checks.iter().map(row),
    )?;
    anyhow::ensure!(report.ok, "{}: not proven", report.flow);
    Ok(())
}

/// One link of the chain, for people.
pub(crate) fn row(check: &VerifyCheck) -> Vec<String> {
    let state = match check.state {
        VerifyState::Ok => "ok",
        VerifyState::Missing => "MISSING",
        VerifyState::Unknown => "unknown",
    };
    vec![check.what.clone(), state.into(), check.detail.clone()]
}

/// Asks until every link holds, or for as long as a proof may take: the first question sets a session, proofs and
/// announcements in motion and asks the peer; the last answer counts.
pub(crate) async fn settled(
    agent: &AdminSocket,
    request: &Request,
) -> anyhow::Result<VerifyReport> {
    let mut client = agent.connect().await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let report: VerifyReport = client.ask(request).await?;
        if report.ok || Instant::now() >= deadline {
            return Ok(report);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

pub(crate) fn destination(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or("no port; write NAME:PORT, ADDRESS:PORT or [IPv6]:PORT")?;
    let port = port
        .parse()
        .map_err(|_| format!("{port:?} is not a port: a number, and the protocol by --protocol"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err("no destination before the colon".into());
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::destination;

    #[test]
    fn a_destination_is_a_name_an_address_or_a_spiffe_id_with_a_port() {
        assert_eq!(destination("db1:5432"), Ok(("db1".into(), 5432)));
        assert_eq!(destination("[fd00::1]:80"), Ok(("fd00::1".into(), 80)));
        assert_eq!(
            destination("spiffe://example.org/db:5432"),
            Ok(("spiffe://example.org/db".into(), 5432))
        );
        for bad in ["db1", "db1:", "db1:99999", ":80"] {
            assert!(destination(bad).is_err(), "{bad}");
        }
    }
}
