//! What every test here begins with: is the machine fit, and is it our turn?

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::harness::lab::{Lab, Workload};
use crate::harness::mesh::{Authority, Node};
use crate::harness::{requirements, wait};

/// The turn of one test. Others, in this process or another, wait.
pub struct Turn(#[allow(dead_code)] Flock<File>);

/// Takes the turn, or says why the test cannot run.
pub fn turn(test: &str) -> Option<Turn> {
    let missing = requirements::missing();
    if !missing.is_empty() {
        eprintln!("skipped: {test}: missing {}", missing.join("; "));
        return None;
    }
    let file = File::create("/run/handfast-e2e.lock").unwrap();
    Some(Turn(Flock::lock(file, FlockArg::LockExclusive).unwrap()))
}

/// The program under test.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_handfast"))
}

/// Two nodes with agents, a CA, and no workload yet. The lab is last, so that it is dropped last.
pub struct Mesh {
    pub n1: Node,
    pub n2: Node,
    pub authority: Authority,
    pub lab: Lab,
}

impl Mesh {
    /// Builds it.
    pub fn start() -> Self {
        let lab = Lab::create("hft").unwrap();
        let authority = Authority::start(&lab, binary()).unwrap();
        let [n1, n2] = [1, 2].map(|number| {
            let mut node = Node::create(&lab, binary(), number).unwrap();
            node.join(&authority).unwrap();
            node.run().unwrap();
            node
        });
        Self {
            n1,
            n2,
            authority,
            lab,
        }
    }

    /// A registered workload, attached to a node as number `index`, with its identity.
    pub fn workload(&self, node: &Node, short: &str, labels: &[&str], index: u8) -> Workload {
        let workload = self.lab.workload(short).unwrap();
        self.authority
            .entry(short, workload.ns.name(), labels)
            .unwrap();
        node.attach(&workload, index).unwrap();
        node.identified(short).unwrap();
        workload
    }

    /// Puts a policy in force on both nodes.
    pub fn apply(&self, text: &str) {
        let path = self.lab.dir().join("policy.yaml");
        std::fs::write(&path, text).unwrap();
        let version = |node: &Node| {
            node.json::<crate::harness::mesh::Status>(&["status"])
                .unwrap()
                .policy_version
        };
        let before = [&self.n1, &self.n2].map(version);
        self.authority.apply(&path).unwrap();
        for (node, before) in [&self.n1, &self.n2].into_iter().zip(before) {
            wait::until("the policy in force", SOON, || {
                Ok((version(node) > before).then_some(()))
            })
            .unwrap();
        }
    }
}

/// How long anything may take that must not be measured.
pub const SOON: std::time::Duration = std::time::Duration::from_secs(15);

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
