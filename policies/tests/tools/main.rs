//! The tools, on the example of a small shop and on policies made for one question each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod cases_run;
mod checks;
mod differences;
mod explained;
mod graphs;
mod migration;
mod suggestions;

use handfast_policies::tools::cases::{Cases, junit};
use handfast_policies::tools::check::{Finding, Level, check};
use handfast_policies::tools::diff::{Change, diff};
use handfast_policies::tools::explain::explain;
use handfast_policies::tools::flow::{Flow, Outcome};
use handfast_policies::tools::graph::{Graph, State, dot, graph, html, svg};
use handfast_policies::tools::inventory::Inventory;
use handfast_policies::tools::migrate::{Enforcer, Migration, migrate};
use handfast_policies::tools::observed;
use handfast_policies::tools::suggest::{Proofs, suggest};
use handfast_policies::{PolicySet, Protocol, Source};

const POLICIES: &str = include_str!("../../../examples/shop/policies.yaml");
const WORKLOADS: &str = include_str!("../../../examples/shop/workloads.yaml");
const OBSERVED: &str = include_str!("../../../examples/shop/observed.jsonl");

fn source(name: &str, text: &str) -> Source {
    Source {
        name: name.to_owned(),
        text: text.to_owned(),
    }
}

#[track_caller]
fn read(text: &str) -> PolicySet {
    PolicySet::read(vec![source("p.yaml", text)]).unwrap_or_else(|e| panic!("{e:#?}\n{text}"))
}

fn shop() -> (PolicySet, Inventory) {
    let inventory = Inventory::read(&source("workloads.yaml", WORKLOADS)).unwrap();
    (read(POLICIES), inventory)
}

/// HandfastPolicies without a namespace, one for each spec.
fn native(specs: &[&str]) -> PolicySet {
    let document = |(number, spec): (usize, &&str)| {
        format!(
            "---\napiVersion: handfast.io/v1alpha1\nkind: HandfastPolicy\nmetadata: {{name: p{number}}}\nspec: \
             {{{spec}}}\n"
        )
    };
    read(&specs.iter().enumerate().map(document).collect::<String>())
}

fn said(findings: &[Finding], level: Level) -> Vec<String> {
    let found = findings.iter().filter(|finding| finding.level == level);
    found.map(ToString::to_string).collect()
}
