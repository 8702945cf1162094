//! What the tools read: policies from files or from the CA, workloads, observed flows.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use handfast_agent::endpoint::Exempt;
use handfast_policies::tools::check::{Finding, Level};
use handfast_policies::tools::inventory::{self, Inventory, Need};
use handfast_policies::tools::observed::{self, Observed};
use handfast_policies::{PolicySet, Protocol, ReadError, Source, Workload};

use super::files;
use crate::ca::CaSocket;

/// The largest file of workloads or observed flows.
const MAX_BYTES: u64 = 256 << 20;

/// Where the workloads come from.
#[derive(Debug, Args)]
pub(super) struct WorkloadArgs {
    /// The workloads there are: a YAML file, or what `handfast entry list --output json` prints
    #[arg(long, value_name = "FILE")]
    pub(super) workloads: Option<PathBuf>,
}

/// Flows that policies must leave alone.
#[derive(Debug, Args)]
pub(super) struct LifelineArgs {
    /// Where agents reach the CA: refuse policies that would cut them from it
    #[arg(long, value_name = "ADDRESS:PORT")]
    ca_address: Vec<SocketAddr>,
    /// Where the CA reaches its store: refuse policies that would cut it
    #[arg(long, value_name = "ADDRESS:PORT", requires = "ca_address")]
    store_address: Vec<SocketAddr>,
    /// Name servers that agents ask: refuse policies that would cut them
    #[arg(long, value_name = "ADDRESS")]
    dns_address: Vec<IpAddr>,
    /// TCP port of the SSH server of machines that are workloads themselves: refuse policies that would let nobody reach it
    #[arg(long, value_name = "PORT", default_value = "22")]
    ssh_port: Vec<u16>,
    /// A port that these machines keep open whatever policy says, as `handfast endpoint list` shows it on each: it is not
    /// judged; repeat for more
    #[arg(long, value_name = "tcp/PORT")]
    exempt: Vec<Exempt>,
    /// Take policies that would cut one of these
    #[arg(long)]
    allow_cut: bool,
}

impl WorkloadArgs {
    /// The workloads of the file; none without one.
    pub(super) fn read(&self) -> anyhow::Result<Inventory> {
        match &self.workloads {
            Some(path) => inventory(path),
            None => Ok(Inventory::default()),
        }
    }

    /// The workloads of the file, or else those that the CA has entries for.
    pub(super) async fn read_or_ask(&self, ca: &CaSocket) -> anyhow::Result<Inventory> {
        if self.workloads.is_some() {
            return self.read();
        }
        let mut inventory = Inventory::default();
        for entry in ca.connect().await?.entries().await? {
            let labels = entry.labels.iter();
            let workload = Workload {
                spiffe_id: entry.spiffe_id.clone(),
                labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            };
            let selectors: Vec<_> = entry.selectors.iter().map(ToString::to_string).collect();
            let is_machine = inventory::is_machine(selectors.iter().map(String::as_str));
            inventory.add(None, workload, Vec::new(), is_machine);
        }
        Ok(inventory)
    }
}

impl LifelineArgs {
    /// Adds them to what is known of the workloads.
    pub(super) fn add_to(&self, inventory: &mut Inventory) {
        inventory.needs.extend(self.needs());
        let open = |port: &u16| self.exempt.iter().any(|exempt| exempt.is_tcp(*port));
        let judged = self.ssh_port.iter().copied().filter(|port| !open(port));
        inventory.ssh_ports = judged.collect();
    }

    /// The flows, in the words of an inventory.
    fn needs(&self) -> Vec<Need> {
        let need = |name: &str, from: &str, to: IpAddr, port: u16, protocol: Protocol| Need {
            name: name.to_owned(),
            from: from.to_owned(),
            to: to.to_string(),
            protocol,
            port,
        };
        let mut needs = Vec::new();
        for ca in &self.ca_address {
            needs.push(need(
                "agents reach the CA",
                "host",
                ca.ip(),
                ca.port(),
                Protocol::Tcp,
            ));
            for store in &self.store_address {
                let from = ca.ip().to_string();
                let (ip, port) = (store.ip(), store.port());
                needs.push(need(
                    "the CA reaches its store",
                    &from,
                    ip,
                    port,
                    Protocol::Tcp,
                ));
            }
        }
        for dns in &self.dns_address {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                needs.push(need("agents resolve names", "host", *dns, 53, protocol));
            }
        }
        needs
    }

    /// Why policies are not to be taken, if so.
    pub(super) fn judge(&self, findings: &[Finding]) -> anyhow::Result<()> {
        let insisted =
            |found: &Finding| self.allow_cut && matches!(found.code, "cuts-lifeline" | "cuts-ssh");
        let refused = |found: &Finding| found.level == Level::Refused && !insisted(found);
        ensure!(
            !findings.iter().any(refused),
            "these policies are refused; change them (what would cut handfast's own lifelines, or SSH, passes with --allow-cut)"
        );
        Ok(())
    }
}

/// The policies of files, or without files those that the CA has in force.
pub(super) async fn policies(paths: &[PathBuf], ca: &CaSocket) -> anyhow::Result<PolicySet> {
    if !paths.is_empty() {
        return set(paths);
    }
    let stored = ca.connect().await?.policies().await?;
    let source = |document: handfast_ca::model::PolicyDocument| Source {
        name: document.name,
        text: document.text,
    };
    PolicySet::read(stored.into_iter().map(source).collect()).map_err(all)
}

/// The policies of files.
pub(super) fn set(paths: &[PathBuf]) -> anyhow::Result<PolicySet> {
    PolicySet::read(sources(paths)?).map_err(all)
}

/// The texts of files.
pub(super) fn sources(paths: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let (sources, errors) = files::read(paths)?;
    if errors.is_empty() {
        Ok(sources)
    } else {
        Err(all(errors))
    }
}

/// The workloads of a file.
pub(super) fn inventory(path: &Path) -> anyhow::Result<Inventory> {
    Inventory::read(&text(path)?).map_err(all)
}

/// The flows of a text.
pub(super) fn flows(source: &Source, inventory: &Inventory) -> anyhow::Result<Vec<Observed>> {
    observed::read(source, inventory).map_err(all)
}

/// A file's text with its name.
pub(super) fn text(path: &Path) -> anyhow::Result<Source> {
    let name = path.display().to_string();
    let cannot = || format!("cannot read {name}; nothing was changed");
    let size = path.metadata().with_context(cannot)?.len();
    if size > MAX_BYTES {
        bail!("{name} has {size} bytes, and {MAX_BYTES} is the most that is read");
    }
    let text = std::fs::read_to_string(path).with_context(cannot)?;
    Ok(Source { name, text })
}

/// Every error, one a line.
pub(super) fn all(errors: Vec<ReadError>) -> anyhow::Error {
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    anyhow::anyhow!("{}\nnothing was changed", lines.join("\n"))
}
