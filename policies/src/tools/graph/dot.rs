//! The graph for Graphviz.

use std::fmt::Write;

use crate::tools::graph::{Graph, State};

/// The graph in the DOT language.
#[must_use]
pub fn dot(graph: &Graph) -> String {
    let mut text = String::from(
        "digraph policies {\n  rankdir=LR;\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n  edge \
         [fontname=\"sans-serif\", fontsize=10];\n",
    );
    // Writing to a string cannot fail.
    for (number, node) in graph.nodes.iter().enumerate() {
        let shape = match node.kind {
            "workload" => "",
            _ => ", shape=ellipse, style=dashed",
        };
        let alike = match node.alike {
            0 => String::new(),
            alike => format!(" (+{alike})"),
        };
        let label = quote(&format!("{}{alike}", node.name));
        let _ = writeln!(text, "  n{number} [label={label}{shape}];");
    }
    for edge in &graph.edges {
        let style = match edge.state {
            State::Proven | State::Open => "solid",
            State::Denied | State::NeverSeen => "dotted",
            State::AuditOnly | State::Unexpected => "dashed",
        };
        let _ = writeln!(
            text,
            "  n{} -> n{} [label={}, tooltip={}, color={}, style={style}];",
            edge.from,
            edge.to,
            quote(&edge.label()),
            quote(edge.state.label()),
            quote(edge.state.colour()),
        );
    }
    text.push_str("}\n");
    text
}

fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
