//! The graph as one page: no other file, no server, nothing fetched.

use crate::tools::cases::escape;
use crate::tools::graph::svg::{picture, style};
use crate::tools::graph::{Graph, State};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page. Its own policy lets no script run but its own, and fetches nothing.
#[must_use]
pub fn html(graph: &Graph, title: &str) -> String {
    let filters: String = State::ALL
        .iter()
        .map(|state| {
            let count = graph.edges.iter().filter(|edge| edge.state == *state).count();
            format!(
                "<label class=\"filter\"><input type=\"checkbox\" value=\"{word}\" checked{off}><svg width=\"34\" \
                 height=\"12\" aria-hidden=\"true\"><path class=\"edge {word}\" d=\"M1 6H26\"/></svg>{label} \
                 <b>{count}</b></label>",
                word = state.word(),
                label = escape(state.label()),
                off = if count == 0 { " disabled" } else { "" },
            )
        })
        .collect();
    let notes = [
        (!graph.has_observed)
            .then_some("No observed flows were given: the picture shows configuration alone."),
        graph
            .is_cut
            .then_some("There are more edges than one page can show: the rest is left out."),
    ];
    let notes: String = notes
        .into_iter()
        .flatten()
        .map(|note| format!("<p class=\"note\">{note}</p>"))
        .collect();
    // In a script element only "<" can do harm.
    let data = serde_json::to_string(graph)
        .unwrap_or_default()
        .replace('<', "\\u003c");
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"><meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\"><title>{title}</title>\
         <style>{}{STYLE}</style></head><body><header><h1>{title}</h1><div class=\"controls\"><input id=\"search\" \
         type=\"search\" placeholder=\"Search names, labels, SPIFFE IDs, ports, rules\" autofocus \
         aria-label=\"Search\"><select id=\"namespace\" aria-label=\"Namespace\"><option value=\"\">every \
         namespace</option></select><span id=\"count\" role=\"status\"></span></div><div class=\"filters\">{filters}\
         </div>{notes}</header><main><div id=\"picture\">{}</div><aside id=\"details\" hidden></aside></main>\
         <section><table><thead><tr><th>From</th><th>To</th><th>Traffic</th><th>State</th><th>Seen</th><th>Rules</th>\
         </tr></thead><tbody id=\"rows\"></tbody></table></section><script id=\"data\" \
         type=\"application/json\">{data}</script><script>{SCRIPT}</script></body></html>\n",
        style(),
        picture(graph, "", ""),
        title = escape(title),
    )
}
