//! The plan against random histories: late and lost confirmations, crashes, evictions, newcomers, force and abort.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::plan::*;

const OLD: &str = "old";
const NEW: &str = "new";
const PARTNERS: Duration = Duration::from_secs(900);
const TOKENS: Duration = Duration::from_secs(300);

#[derive(Debug, Clone)]
enum Event {
    /// The node applies the newest update.
    Apply(usize),
    /// It replaces its SVIDs.
    Renew(usize),
    /// It says where it stands; the message is on its way.
    Report(usize),
    /// The oldest message of a node reaches the CA, or is lost.
    Arrive(usize, bool),
    Evict(usize),
    Join,
    ServerLoads(usize),
    ServerGetsCertificate(usize),
    Pass(u64),
    /// The CA is killed and starts again from its journal.
    Crash,
    Tick,
    Force,
    Abort,
}

fn event() -> impl Strategy<Value = Event> {
    use Event::*;
    let node = 0..4_usize;
    prop_oneof![
        6 => node.clone().prop_map(Apply),
        5 => node.clone().prop_map(Renew),
        6 => node.clone().prop_map(Report),
        8 => (node.clone(), prop::bool::weighted(0.8)).prop_map(|(node, lost)| Arrive(node, lost)),
        1 => node.prop_map(Evict),
        1 => Just(Join),
        4 => (0..2_usize).prop_map(ServerLoads),
        3 => (0..2_usize).prop_map(ServerGetsCertificate),
        4 => (1..400_u64).prop_map(Pass),
        2 => Just(Crash),
        10 => Just(Tick),
        1 => Just(Force),
        1 => Just(Abort),
    ]
}

#[derive(Debug, Clone)]
struct Node {
    counts: bool,
    /// What is true on the node.
    applied: u64,
    uses: BTreeSet<String>,
    /// What the CA has heard.
    heard: (u64, BTreeSet<String>),
    under_way: Vec<(u64, BTreeSet<String>)>,
}

#[derive(Debug)]
struct Mesh {
    plan: Plan,
    journal: Plan,
    /// The number of the last change.
    sequence: u64,
    prepared_at: u64,
    nodes: Vec<Node>,
    /// Does it sign with the new one, what has it taken in, does it have a certificate?
    servers: [(bool, u64, bool); 2],
    waited: Duration,
}

impl Mesh {
    fn new(what: What) -> Self {
        let node = Node {
            counts: true,
            applied: 1,
            uses: [OLD.to_owned()].into(),
            heard: (1, [OLD.to_owned()].into()),
            under_way: Vec::new(),
        };
        let plan = Plan {
            what,
            stage: Stage::Prepared,
            goal: Stage::Revoked,
            revision: 2,
            forced: None,
        };
        Self {
            journal: plan.clone(),
            plan,
            sequence: 2,
            prepared_at: 2,
            nodes: vec![node; 3],
            servers: [(false, 1, what != What::Root); 2],
            waited: Duration::ZERO,
        }
    }

    fn world(&self) -> World {
        let counted = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.counts);
        World {
            nodes: counted
                .map(|(at, node)| NodeView {
                    name: format!("n{at}").parse().unwrap(),
                    acknowledged: node.heard.0,
                    in_use: node.heard.1.clone(),
                    problem: String::new(),
                })
                .collect(),
            servers: self
                .servers
                .iter()
                .enumerate()
                .map(|(at, (_, applied, ready))| ServerView {
                    name: format!("s{at}"),
                    ready: *ready,
                    applied: *applied,
                })
                .collect(),
            outgoing: [OLD.to_owned()].into(),
            waited: self.waited,
            partners: PARTNERS,
            tokens: TOKENS,
        }
    }

    /// Who signs for a node: any server, the one that is furthest behind at worst.
    fn signer(&self) -> &'static str {
        let new = self.plan.stage > Stage::Prepared && self.servers.iter().all(|server| server.0);
        if new && self.plan.stage != Stage::Aborted {
            NEW
        } else {
            OLD
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Apply(at) => {
                let last = self.sequence;
                if let Some(node) = self.nodes.get_mut(at) {
                    node.applied = last;
                }
            }
            Event::Renew(at) => {
                let signer = self.signer().to_owned();
                if let Some(node) = self.nodes.get_mut(at) {
                    node.uses = [signer].into();
                }
            }
            Event::Report(at) => {
                if let Some(node) = self.nodes.get_mut(at) {
                    node.under_way.push((node.applied, node.uses.clone()));
                }
            }
            Event::Arrive(at, arrives) => {
                if let Some(node) = self.nodes.get_mut(at)
                    && !node.under_way.is_empty()
                {
                    let report = node.under_way.remove(0);
                    if arrives {
                        node.heard = (node.heard.0.max(report.0), report.1);
                    }
                }
            }
            Event::Evict(at) => {
                if let Some(node) = self.nodes.get_mut(at) {
                    node.counts = false;
                }
            }
            Event::Join => {
                let signer = self.signer().to_owned();
                self.nodes.push(Node {
                    counts: true,
                    applied: self.sequence,
                    uses: [signer].into(),
                    heard: (0, BTreeSet::new()),
                    under_way: Vec::new(),
                });
            }
            Event::ServerLoads(at) => {
                let (stage, sequence) = (self.journal.stage, self.sequence);
                let server = &mut self.servers[at];
                server.1 = sequence;
                server.0 = stage > Stage::Prepared && stage != Stage::Aborted;
            }
            Event::ServerGetsCertificate(at) => self.servers[at].2 = true,
            Event::Pass(seconds) => self.waited += Duration::from_secs(seconds),
            Event::Crash => {
                self.plan = self.journal.clone();
                // What was waited since it was last written down is waited again.
                self.waited = self.waited.saturating_sub(Duration::from_secs(10));
            }
            Event::Tick => self.tick(),
            Event::Force => self.plan.forced = Some(everybody("the operator said so")),
            Event::Abort => {
                if self.plan.can_abort() {
                    self.record(Stage::Aborted);
                }
            }
        }
    }

    fn tick(&mut self) {
        let Next::Step(step, passed) = self.plan.next(&self.world()) else {
            return;
        };
        assert_eq!(Some(step), self.plan.stage.successor());
        let forced = self.plan.forced.is_some();
        assert!(passed.is_empty() || forced);
        assert!(passed.iter().all(Blocker::can_be_forced));
        let counted: Vec<&Node> = self.nodes.iter().filter(|node| node.counts).collect();
        if step == Stage::Activated && self.plan.what != What::Issuing {
            // Forced or not, no server is left without a certificate.
            assert!(self.servers.iter().all(|server| server.2));
            if !forced {
                assert!(counted.iter().all(|node| node.applied >= self.prepared_at));
                assert!(self.waited >= PARTNERS);
            }
        }
        if step == Stage::Tainted && !forced {
            assert!(self.servers.iter().all(|server| server.0));
        }
        if matches!(step, Stage::Tainted | Stage::Revoked) && !forced {
            for node in counted {
                assert!(!node.uses.contains(OLD), "{step:?} of what {node:?} uses");
            }
            if self.plan.what == What::Jwt && step == Stage::Revoked {
                assert!(self.waited >= TOKENS);
            }
        }
        self.record(step);
    }

    fn record(&mut self, step: Stage) {
        assert!(!self.journal.stage.is_final());
        self.sequence += 1;
        self.plan.stage = step;
        self.plan.revision = self.sequence;
        self.plan.forced = None;
        self.journal = self.plan.clone();
        self.waited = Duration::ZERO;
    }
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![Just(What::Root), Just(What::Issuing), Just(What::Jwt)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_is_activated_unknown_nor_taken_away_in_use(
        what in what(),
        events in prop::collection::vec(event(), 1..400),
    ) {
        let mut mesh = Mesh::new(what);
        for event in events {
            mesh.happen(event);
        }
    }

    #[test]
    fn it_ends_once_everybody_answers(
        what in what(),
        events in prop::collection::vec(event(), 1..200),
    ) {
        let mut mesh = Mesh::new(what);
        for event in events {
            mesh.happen(event);
        }
        for _ in 0..6 {
            for server in 0..2 {
                mesh.happen(Event::ServerGetsCertificate(server));
                mesh.happen(Event::ServerLoads(server));
            }
            for node in 0..mesh.nodes.len() {
                mesh.happen(Event::Apply(node));
                mesh.happen(Event::Renew(node));
                mesh.happen(Event::Report(node));
                while !mesh.nodes[node].under_way.is_empty() {
                    mesh.happen(Event::Arrive(node, true));
                }
            }
            mesh.happen(Event::Pass(901));
            mesh.happen(Event::Tick);
        }
        prop_assert!(mesh.journal.stage.is_final());
    }
}

fn waiting(mesh: &Mesh) -> BTreeMap<String, String> {
    match mesh.plan.next(&mesh.world()) {
        Next::Wait(blockers) => blockers
            .iter()
            .map(|blocker| (blocker.subject().to_owned(), blocker.to_string()))
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// One node, one server less to look at.
fn small(what: What, stage: Stage) -> Mesh {
    let mut mesh = Mesh::new(what);
    mesh.servers = [(true, 9, true); 2];
    mesh.nodes.truncate(1);
    mesh.plan.stage = stage;
    mesh.waited = PARTNERS;
    mesh
}

#[test]
fn a_straggler_is_named_with_what_it_said() {
    let mesh = small(What::Root, Stage::Prepared);
    assert_eq!(
        waiting(&mesh)["n0"],
        "node n0 has not confirmed the last step"
    );
}

#[test]
fn an_evicted_node_holds_nothing_up() {
    let mut mesh = small(What::Root, Stage::Prepared);
    mesh.happen(Event::Evict(0));
    let next = mesh.plan.next(&mesh.world());
    assert_eq!(next, Next::Step(Stage::Activated, vec![]));
}

#[test]
fn a_node_that_never_said_what_it_uses_counts_as_using_it() {
    let mut mesh = small(What::Root, Stage::Activated);
    mesh.nodes[0].heard = (2, BTreeSet::new());
    assert!(waiting(&mesh)["n0"].contains("has not said"));
}

#[test]
fn force_passes_nodes_for_one_step_but_never_a_server_without_a_certificate() {
    let mut mesh = small(What::Root, Stage::Prepared);
    mesh.plan.forced = Some(everybody("n0 burnt down"));
    mesh.servers[1].2 = false;
    assert!(waiting(&mesh).contains_key("s1"));
    mesh.servers[1].2 = true;
    let next = mesh.plan.next(&mesh.world());
    assert!(matches!(next, Next::Step(Stage::Activated, passed) if passed.len() == 1));
    mesh.happen(Event::Tick);
    assert_eq!(
        (mesh.plan.stage, &mesh.plan.forced),
        (Stage::Activated, &None)
    );
}

#[test]
fn force_that_names_nodes_passes_nobody_else() {
    let mut mesh = small(What::Root, Stage::Prepared);
    let all = waiting(&mesh);
    let mut forced = everybody("burnt down");
    forced.nodes = BTreeSet::from(["n9".parse().unwrap()]);
    mesh.plan.forced = Some(forced.clone());
    assert_eq!(waiting(&mesh), all);
    forced.nodes.insert("n0".parse().unwrap());
    mesh.plan.forced = Some(forced);
    let next = mesh.plan.next(&mesh.world());
    assert!(matches!(next, Next::Step(Stage::Activated, passed) if passed.len() == 1));
}

#[test]
fn partners_get_their_time_before_a_root_or_a_jwt_key_signs_but_an_issuing_ca_needs_none() {
    for what in [What::Root, What::Jwt] {
        let mut mesh = small(what, Stage::Prepared);
        mesh.nodes.clear();
        mesh.waited = PARTNERS - Duration::from_millis(1);
        assert!(waiting(&mesh)["federation"].contains("1 s left"));
    }
    let mut mesh = small(What::Issuing, Stage::Prepared);
    mesh.waited = Duration::ZERO;
    assert!(matches!(mesh.plan.next(&mesh.world()), Next::Step(..)));
}

#[test]
fn single_steps_go_no_further_than_they_were_asked_to() {
    let mut mesh = small(What::Root, Stage::Prepared);
    mesh.nodes.clear();
    mesh.plan.goal = Stage::Prepared;
    assert_eq!(mesh.plan.next(&mesh.world()), Next::Rest);
    mesh.plan.goal = Stage::Activated;
    assert!(matches!(
        mesh.plan.next(&mesh.world()),
        Next::Step(Stage::Activated, _)
    ));
}

fn everybody(reason: &str) -> Forced {
    Forced {
        reason: reason.to_owned(),
        nodes: BTreeSet::new(),
    }
}
