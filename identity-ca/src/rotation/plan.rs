//! What a rotation does next: a pure function of the plan and of what is known of nodes, servers and partners.
//!
//! No clock and no I/O: the runner measures how long a stage has lasted, by a clock that does not jump, and the journal
//! records each step in the transaction of its effect.
//!
//! ```text
//!   prepared ──all know the new──> activated ──all hang on the new──> tainted ──still so, and tokens gone──> revoked
//!      └────────abort──────> aborted
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::NodeName;

/// What is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
    /// The root, and with it the issuing CA of every server.
    Root,
    /// One server's issuing CA, under the same root.
    Issuing,
    /// One server's key for JWT-SVIDs.
    Jwt,
}

/// How far a plan has come. The order is the order of time, but for the last two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The new authority exists and is in the bundle; it signs nothing.
    Prepared,
    /// The new one signs, the old one does not; holders are told to leave it.
    Activated,
    /// Nobody hangs on the old one; its key is destroyed.
    Tainted,
    /// The old one is out of the bundle: the plan is finished.
    Revoked,
    /// The new one was taken back before it signed anything: the plan is finished.
    Aborted,
    /// Another plan has taken over what this one had not finished.
    Overtaken,
}

impl Stage {
    /// No step follows.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Revoked | Self::Aborted | Self::Overtaken)
    }

    /// What follows, if all goes well.
    pub fn successor(self) -> Option<Self> {
        match self {
            Self::Prepared => Some(Self::Activated),
            Self::Activated => Some(Self::Tainted),
            Self::Tainted => Some(Self::Revoked),
            Self::Revoked | Self::Aborted | Self::Overtaken => None,
        }
    }
}

impl What {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Issuing => "issuing",
            Self::Jwt => "jwt",
        }
    }

    /// As people call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Issuing => "issuing CA",
            Self::Jwt => "JWT key",
        }
    }
}

impl FromStr for What {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        [Self::Root, Self::Issuing, Self::Jwt]
            .into_iter()
            .find(|what| what.name() == name)
            .ok_or(())
    }
}

impl Stage {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Activated => "activated",
            Self::Tainted => "tainted",
            Self::Revoked => "revoked",
            Self::Aborted => "aborted",
            Self::Overtaken => "overtaken",
        }
    }
}

impl FromStr for Stage {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        [
            Self::Prepared,
            Self::Activated,
            Self::Tainted,
            Self::Revoked,
            Self::Aborted,
            Self::Overtaken,
        ]
        .into_iter()
        .find(|stage| stage.name() == name)
        .ok_or(())
    }
}

/// A rotation that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) what: What,
    pub(crate) stage: Stage,
    /// It goes on by itself until here.
    pub(crate) goal: Stage,
    /// Update that carried the last step to agents.
    pub(crate) revision: u64,
    /// The next step passes stragglers. Holds for one step.
    pub(crate) forced: Option<Forced>,
}

/// An operator takes it upon themselves that a step leaves somebody behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Forced {
    pub(crate) reason: String,
    /// Only these; empty for whoever stands in the way.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) nodes: BTreeSet<NodeName>,
}

impl Forced {
    fn passes(&self, blocker: &Blocker) -> bool {
        let named = || blocker.node().is_some_and(|node| self.nodes.contains(node));
        blocker.can_be_forced() && (self.nodes.is_empty() || named())
    }
}

/// A node that counts: joined, and neither evicted, banned nor revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeView {
    pub(crate) name: NodeName,
    /// The last update that it has applied.
    pub(crate) acknowledged: u64,
    /// What its SVIDs hang on; empty if it has never said.
    pub(crate) in_use: BTreeSet<String>,
    /// What it could not apply.
    pub(crate) problem: String,
}

/// A server of this CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerView {
    pub(crate) name: String,
    /// Has what it needs to sign with once the plan is activated.
    pub(crate) ready: bool,
    /// The last change that it has taken in.
    pub(crate) applied: u64,
}

/// Everything a decision depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct World {
    pub(crate) nodes: Vec<NodeView>,
    pub(crate) servers: Vec<ServerView>,
    /// What is to be left: issuing CAs' hashes, or key IDs.
    pub(crate) outgoing: BTreeSet<String>,
    /// How long the present stage has lasted.
    pub(crate) waited: Duration,
    /// Partners have fetched what is new after this long (SPIFFE F-6); zero without federation.
    pub(crate) partners: Duration,
    /// The longest life of what the old one has signed and no agent keeps count of: JWT-SVIDs.
    pub(crate) tokens: Duration,
}

/// Why a plan waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Blocker {
    /// A node has not confirmed the last step.
    Unconfirmed { node: NodeName, problem: String },
    /// A node's SVIDs still hang on what is to go.
    InUse {
        node: NodeName,
        authorities: Vec<String>,
    },
    /// A node has never said what its SVIDs hang on.
    Silent { node: NodeName },
    /// A server has nothing to sign with under the new root.
    Unprepared { server: String },
    /// A server has not taken the last step in.
    Behind { server: String },
    /// Partners of a federation may not have fetched the new bundle.
    Partners { left: Duration },
    /// Tokens of the old key may still be alive.
    Tokens { left: Duration },
}

impl Blocker {
    /// May an operator pass it, giving a reason?
    pub(crate) fn can_be_forced(&self) -> bool {
        // A server that signs with nothing would refuse everybody.
        !matches!(self, Self::Unprepared { .. })
    }

    /// The node that it is about.
    pub(crate) fn node(&self) -> Option<&NodeName> {
        match self {
            Self::Unconfirmed { node, .. } | Self::InUse { node, .. } | Self::Silent { node } => {
                Some(node)
            }
            _ => None,
        }
    }

    /// Node or server that it is about.
    pub(crate) fn subject(&self) -> &str {
        match self {
            Self::Unconfirmed { node, .. } | Self::InUse { node, .. } | Self::Silent { node } => {
                node.as_str()
            }
            Self::Unprepared { server } | Self::Behind { server } => server,
            Self::Partners { .. } => "federation",
            Self::Tokens { .. } => "tokens",
        }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |left: &Duration| left.as_millis().div_ceil(1000);
        match self {
            Self::Unconfirmed { node, problem } if problem.is_empty() => {
                write!(f, "node {node} has not confirmed the last step")
            }
            Self::Unconfirmed { node, problem } => {
                write!(f, "node {node} could not apply the last step: {problem}")
            }
            Self::InUse { node, authorities } => write!(
                f,
                "node {node} still has SVIDs of {} authorities that are to go",
                authorities.len()
            ),
            Self::Silent { node } => {
                write!(f, "node {node} has not said what its SVIDs hang on")
            }
            Self::Unprepared { server } => {
                write!(f, "server {server} has no certificate of the new root")
            }
            Self::Behind { server } => write!(f, "server {server} has not taken in the last step"),
            Self::Partners { left } => write!(
                f,
                "partners of the federation have {} s left to fetch the new bundle",
                seconds(left)
            ),
            Self::Tokens { left } => {
                write!(f, "tokens of the old key live for {} s", seconds(left))
            }
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// This step, now; whom it passes by force.
    Step(Stage, Vec<Blocker>),
    /// Nothing until these are gone.
    Wait(Vec<Blocker>),
    /// The goal is reached: nothing, until an operator says so.
    Rest,
}

impl Plan {
    /// What is to be done in such a world.
    pub(crate) fn next(&self, world: &World) -> Next {
        let Some(step) = self.stage.successor().filter(|_| self.stage < self.goal) else {
            return Next::Rest;
        };
        let blockers = self.blockers(world);
        let passed = |blocker: &Blocker| {
            self.forced
                .as_ref()
                .is_some_and(|forced| forced.passes(blocker))
        };
        if blockers.iter().all(passed) {
            return Next::Step(step, blockers);
        }
        Next::Wait(blockers)
    }

    /// What stands between this stage and the next.
    pub(crate) fn blockers(&self, world: &World) -> Vec<Blocker> {
        match self.stage {
            Stage::Prepared => self.unprepared(world),
            Stage::Activated => self.still_used(world),
            Stage::Tainted => self.still_alive(world),
            Stage::Revoked | Stage::Aborted | Stage::Overtaken => Vec::new(),
        }
    }

    /// Can it be taken back? Not once the new authority has signed.
    pub(crate) fn can_abort(&self) -> bool {
        self.stage == Stage::Prepared
    }

    fn unprepared(&self, world: &World) -> Vec<Blocker> {
        let mut blockers: Vec<Blocker> = world
            .servers
            .iter()
            .filter(|server| !server.ready)
            .map(|server| Blocker::Unprepared {
                server: server.name.clone(),
            })
            .collect();
        if self.what == What::Issuing {
            // Its certificate travels in every chain: nobody has to know it before.
            return blockers;
        }
        blockers.extend(self.behind(world));
        blockers.extend(world.nodes.iter().filter_map(|node| self.unconfirmed(node)));
        blockers.extend(left(world.partners, world.waited).map(|left| Blocker::Partners { left }));
        blockers
    }

    fn still_used(&self, world: &World) -> Vec<Blocker> {
        let mut blockers: Vec<Blocker> = self.behind(world).collect();
        for node in &world.nodes {
            let used: Vec<String> = node.in_use.intersection(&world.outgoing).cloned().collect();
            let blocker = if !used.is_empty() {
                Some(Blocker::InUse {
                    node: node.name.clone(),
                    authorities: used,
                })
            } else {
                // What it said before the step says nothing about after it.
                self.unconfirmed(node).or_else(|| {
                    node.in_use.is_empty().then(|| Blocker::Silent {
                        node: node.name.clone(),
                    })
                })
            };
            blockers.extend(blocker);
        }
        blockers
    }

    fn still_alive(&self, world: &World) -> Vec<Blocker> {
        let mut blockers = self.still_used(world);
        if self.what == What::Jwt {
            blockers.extend(left(world.tokens, world.waited).map(|left| Blocker::Tokens { left }));
        }
        blockers
    }

    fn behind(&self, world: &World) -> impl Iterator<Item = Blocker> {
        world
            .servers
            .iter()
            .filter(|server| server.applied < self.revision)
            .map(|server| Blocker::Behind {
                server: server.name.clone(),
            })
    }

    fn unconfirmed(&self, node: &NodeView) -> Option<Blocker> {
        (node.acknowledged < self.revision).then(|| Blocker::Unconfirmed {
            node: node.name.clone(),
            problem: node.problem.clone(),
        })
    }
}

fn left(needed: Duration, waited: Duration) -> Option<Duration> {
    needed.checked_sub(waited).filter(|left| !left.is_zero())
}
