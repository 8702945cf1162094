//! Real nodes with many workloads. Orders go over the same sockets as the command line's, without a process for each.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use handfast_agent::admin::{Client, EndpointInfo, PairDetail, Request, Status, SvidInfo};
use handfast_agent::endpoint::NamespaceName;
use handfast_ca::client::admin::{Admin, NewEntry};
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

use crate::harness::lab::{Lab, Workload};
use crate::harness::mesh::{Authority, Node, spiffe_id, workload_addresses};
use crate::harness::wait;

/// How long anything may take that is not measured.
pub const LONG: Duration = Duration::from_secs(60);

/// A CA and nodes, each with its agent. The lab is last, so that it is dropped last.
pub struct Mesh {
    pub nodes: Vec<Node>,
    pub authority: Authority,
    pub admin: Admin,
    pub runtime: Runtime,
    pub lab: Lab,
}

/// A workload that is to be attached.
#[derive(Clone)]
pub struct Wanted<'a> {
    /// Its namespace.
    pub workload: &'a Workload,
    /// The path of its SPIFFE ID.
    pub path: String,
    /// Its label.
    pub label: (&'a str, String),
    /// Its number on the node: its addresses follow from it.
    pub index: u8,
}

impl Mesh {
    /// Builds it, with the program that lies beside this one.
    pub fn start(nodes: u8) -> Result<Self> {
        Self::start_with(nodes, &[])
    }

    /// The same, with more words for each agent.
    pub fn start_with(nodes: u8, words: &[&str]) -> Result<Self> {
        let binary = std::env::current_exe()?.with_file_name("handfast");
        let lab = Lab::create("hff")?;
        let authority = Authority::start(&lab, &binary)?;
        let mut started = Vec::new();
        for number in 1..=nodes {
            let mut node = Node::create(&lab, &binary, number)?;
            node.also(words);
            node.join(&authority)?;
            node.run()?;
            started.push(node);
        }
        let runtime = Runtime::new()?;
        let admin = runtime.block_on(Admin::connect(authority.socket()))?;
        Ok(Self {
            nodes: started,
            authority,
            admin,
            runtime,
            lab,
        })
    }

    /// Namespaces with nothing in them.
    pub fn namespaces(&self, name: &str, count: usize) -> Result<Vec<Workload>> {
        let make = |number| self.lab.workload(&format!("{name}{number}"));
        (0..count).map(make).collect()
    }

    /// One of the nodes, by its number.
    pub fn node(&self, number: u8) -> Result<&Node> {
        let at = usize::from(number).checked_sub(1);
        at.and_then(|at| self.nodes.get(at)).context("a node")
    }

    /// One of the nodes, to be hurt.
    pub fn node_mut(&mut self, number: u8) -> Result<&mut Node> {
        let at = usize::from(number).checked_sub(1);
        at.and_then(|at| self.nodes.get_mut(at)).context("a node")
    }

    /// Asks a node's agent.
    pub fn ask<T: DeserializeOwned>(&self, number: u8, request: &Request) -> Result<T> {
        let socket = self.node(number)?.socket();
        self.runtime.block_on(async {
            let mut client = Client::connect(&socket).await?;
            Ok(client.ask(request).await?)
        })
    }

    /// The pairs in a node's kernel.
    pub fn pairs(&self, number: u8) -> Result<Vec<PairDetail>> {
        let socket = self.node(number)?.socket();
        self.runtime
            .block_on(async { Ok(Client::connect(&socket).await?.pairs().await?) })
    }

    /// How a node stands.
    pub fn status(&self, number: u8) -> Result<Status> {
        self.ask(number, &Request::Status)
    }

    /// Puts policies in force on all nodes.
    pub fn apply(&self, text: &str) -> Result<()> {
        let path = self.lab.dir().join("policy.yaml");
        std::fs::write(&path, text)?;
        let numbers = 1..=u8::try_from(self.nodes.len())?;
        let before: Vec<u64> = numbers
            .clone()
            .map(|number| Ok(self.status(number)?.policy_version))
            .collect::<Result<_>>()?;
        self.authority.apply(&path)?;
        for (number, before) in numbers.zip(before) {
            wait::until("the policy in force", LONG, || {
                Ok((self.status(number)?.policy_version > before).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Registers workloads and attaches them to a node; returns when each has its proof SVID.
    pub fn attach(&mut self, number: u8, all: &[Wanted]) -> Result<()> {
        let entries: Vec<NewEntry> = all.iter().map(entry).collect();
        let imported = self.admin.import_entries(&entries, false, false);
        self.runtime.block_on(imported)?;
        for wanted in all {
            let order = Request::EndpointAdd {
                name: Some(wanted.workload.short.clone()),
                netns: Some(NamespaceName::new(wanted.workload.ns.name())?),
                group: None,
                exempt: Vec::new(),
                labels: Default::default(),
                addresses: addresses(number, wanted.index),
            };
            let _: EndpointInfo = self.ask(number, &order)?;
        }
        wait::until("the workloads' SVIDs", LONG, || {
            let svids: Vec<SvidInfo> = self.ask(number, &Request::SvidList)?;
            let has = |wanted: &Wanted| {
                let id = spiffe_id(&wanted.path);
                let mut proofs = svids.iter().filter(|svid| svid.kind == "proof");
                proofs.any(|svid| svid.spiffe_id == id)
            };
            Ok(all.iter().all(has).then_some(()))
        })
    }

    /// Detaches workloads and strikes their entries.
    pub fn detach(&mut self, number: u8, all: &[Wanted]) -> Result<()> {
        for wanted in all {
            let name = wanted.workload.short.clone();
            let _: EndpointInfo = self.ask(number, &Request::EndpointRemove { name })?;
        }
        let (admin, runtime) = (&mut self.admin, &self.runtime);
        let known = runtime.block_on(admin.entries())?;
        for wanted in all {
            let id = spiffe_id(&wanted.path);
            for entry in known
                .iter()
                .filter(|entry| entry.spiffe_id.to_string() == id)
            {
                runtime.block_on(admin.delete_entry(&entry.id, "a figure"))?;
            }
        }
        Ok(())
    }
}

/// The addresses of workload `index` of a node.
pub fn addresses(number: u8, index: u8) -> Vec<IpAddr> {
    workload_addresses(number, index).to_vec()
}

fn entry(wanted: &Wanted) -> NewEntry {
    let (key, value) = &wanted.label;
    NewEntry {
        spiffe_id: spiffe_id(&wanted.path),
        selectors: vec![format!("netns:{}", wanted.workload.ns.name())],
        labels: [((*key).to_owned(), value.clone())].into_iter().collect(),
        ..NewEntry::default()
    }
}

/// Processor time that a process has used, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain anything; utime and stime are the 12th and 13th fields after it.
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    let ticks: Vec<f64> = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
    Ok(ticks.iter().sum::<f64>() / hertz as f64)
}
