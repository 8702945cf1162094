//! Who may talk to whom, who does, and where the two differ: as values, and as DOT, SVG and a page.

mod dot;
mod draw;
mod html;
mod layout;
mod svg;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::tools::observed::Seen;

pub use dot::dot;
pub use draw::graph;
pub use html::html;
pub use svg::svg;

/// Nodes, and edges between them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Graph {
    /// Who there is.
    pub nodes: Vec<GraphNode>,
    /// What passes between them, or tried to.
    pub edges: Vec<Edge>,
    /// Whether observed flows were given: only then is "never seen" a finding.
    pub has_observed: bool,
    /// Whether there were more edges than are drawn.
    pub is_cut: bool,
}

/// One end of edges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GraphNode {
    /// What it is called: unique.
    pub name: String,
    /// `workload`, `host` or `outside`.
    pub kind: &'static str,
    /// Its namespace, if it has one.
    pub namespace: Option<String>,
    /// Its SPIFFE ID.
    pub spiffe_id: Option<String>,
    /// Its labels.
    pub labels: Vec<String>,
    /// How many more workloads no policy tells from it.
    pub alike: usize,
}

/// How configuration and observation go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Dropped packets were seen.
    Denied,
    /// Seen to pass without the proof that a rule would ask for if it were not in audit mode.
    AuditOnly,
    /// Seen to pass, and no policy in this set allows it.
    Unexpected,
    /// Allowed, and never seen.
    NeverSeen,
    /// Allowed with both ends proven; and seen, if anything was observed.
    Proven,
    /// Allowed without a proof; and seen, if anything was observed.
    Open,
}

impl State {
    /// All of them, the worst first.
    pub const ALL: [Self; 6] = [
        Self::Denied,
        Self::AuditOnly,
        Self::Unexpected,
        Self::NeverSeen,
        Self::Proven,
        Self::Open,
    ];

    /// The word for programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::AuditOnly => "audit-only",
            Self::Unexpected => "unexpected",
            Self::NeverSeen => "never-seen",
            Self::Proven => "proven",
            Self::Open => "open",
        }
    }

    /// The words for people.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Denied => "denied: dropped packets were seen",
            Self::AuditOnly => "seen, proof only audited",
            Self::Unexpected => "seen, and no policy allows it",
            Self::NeverSeen => "configured, never seen",
            Self::Proven => "allowed, both ends proven",
            Self::Open => "allowed without a proof",
        }
    }

    /// Its colour: told apart without red and green alone.
    fn colour(self) -> &'static str {
        match self {
            Self::Denied => "#c2255c",
            Self::AuditOnly => "#e67700",
            Self::Unexpected => "#7048e8",
            Self::NeverSeen => "#868e96",
            Self::Proven => "#0b7285",
            Self::Open => "#1864ab",
        }
    }

    /// Its line: `stroke-dasharray` of SVG.
    fn dashes(self) -> &'static str {
        match self {
            Self::Denied => "2 3",
            Self::AuditOnly => "8 4",
            Self::Unexpected => "8 3 2 3",
            Self::NeverSeen => "3 5",
            Self::Proven | Self::Open => "none",
        }
    }
}

/// All traffic of one kind from one node to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// The node that opens flows, by its place in the list.
    pub from: usize,
    /// The node that is called.
    pub to: usize,
    /// How it stands.
    pub state: State,
    /// Which traffic: `tcp/443`, `any`, …
    pub traffic: Vec<String>,
    /// The rules that allow or deny it.
    pub rules: Vec<String>,
    /// How many flows were seen to pass, were audited, held, dropped.
    pub seen: BTreeMap<Seen, u64>,
    /// Why packets were dropped.
    pub reason: Option<String>,
}

impl Edge {
    /// What it carries and how often, in one line.
    fn label(&self) -> String {
        match self.traffic.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            [one, two] => format!("{one}, {two}"),
            [one, two, rest @ ..] => format!("{one}, {two} +{}", rest.len()),
        }
    }
}
