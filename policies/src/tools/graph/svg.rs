//! The graph as a picture.

use std::fmt::Write;

use crate::tools::cases::escape;
use crate::tools::graph::layout::{HEIGHT, Layout, Point, WIDTH, layout};
use crate::tools::graph::{Edge, Graph, State};

/// The longest name that fits into a node.
const LONGEST: usize = 25;

/// The graph as a picture by itself.
#[must_use]
pub fn svg(graph: &Graph) -> String {
    let legend: String = State::ALL
        .iter()
        .filter(|state| graph.edges.iter().any(|edge| edge.state == **state))
        .enumerate()
        .fold(String::new(), |mut text, (row, state)| {
            let y = 24 + row * 20;
            let _ = write!(
                text,
                "<path class=\"edge {word}\" d=\"M20 {y}H60\"/><text class=\"legend\" x=\"70\" y=\"{}\">{}</text>",
                y + 4,
                escape(state.label()),
                word = state.word(),
            );
            text
        });
    picture(graph, &format!("<style>{}</style>", style()), &legend)
}

/// How states look; the page has the same.
pub(super) fn style() -> String {
    let mut css = String::from(
        "text{font:13px system-ui,sans-serif;fill:#212529}\
         .node rect{fill:#f8f9fa;stroke:#495057;stroke-width:1.2}\
         .node.host rect,.node.outside rect{fill:#fff;stroke-dasharray:4 3}\
         .edge{fill:none;stroke-width:1.8}.traffic{font-size:11px;fill:#495057;paint-order:stroke;stroke:#fff;\
         stroke-width:3px}.legend{font-size:12px}",
    );
    for state in State::ALL {
        let _ = write!(
            css,
            ".edge.{word}{{stroke:{colour};stroke-dasharray:{dashes};marker-end:url(#{word})}}",
            word = state.word(),
            colour = state.colour(),
            dashes = state.dashes(),
        );
    }
    css
}

/// The picture with something in its head and something drawn above the rest.
pub(super) fn picture(graph: &Graph, head: &str, above: &str) -> String {
    let layout = layout(graph);
    let rows = above.matches("class=\"legend\"").count();
    let top = if rows == 0 { 0 } else { 20 + rows * 20 };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 -{top} {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"Who may talk to whom\">{head}<defs>",
        width = layout.width.max(360.0),
        height = layout.height + top as f64,
    );
    // Writing to a string cannot fail.
    for state in State::ALL {
        let _ = write!(
            svg,
            "<marker id=\"{}\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
             orient=\"auto-start-reverse\"><path d=\"M0 0L8 4L0 8z\" fill=\"{}\"/></marker>",
            state.word(),
            state.colour()
        );
    }
    svg.push_str("</defs>");
    if !above.is_empty() {
        let _ = write!(svg, "<g transform=\"translate(0 -{top})\">{above}</g>");
    }
    for (number, edge) in graph.edges.iter().enumerate() {
        draw_edge(&mut svg, graph, &layout, number, edge);
    }
    for (number, node) in graph.nodes.iter().enumerate() {
        let (x, y) = layout.places.get(number).copied().unwrap_or_default();
        let alike = match node.alike {
            0 => String::new(),
            alike => format!(" +{alike}"),
        };
        let room = LONGEST.saturating_sub(alike.chars().count());
        let _ = write!(
            svg,
            "<g class=\"node {kind}\" data-node=\"{number}\" tabindex=\"0\"><title>{title}</title><rect x=\"{x:.1}\" \
             y=\"{y:.1}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"7\"/><text x=\"{tx:.1}\" y=\"{ty:.1}\" \
             text-anchor=\"middle\">{name}</text></g>",
            kind = node.kind,
            title = escape(&node.name),
            tx = x + WIDTH / 2.0,
            ty = y + HEIGHT / 2.0 + 4.5,
            name = escape(&format!("{}{alike}", short(&node.name, room))),
        );
    }
    svg.push_str("</svg>");
    svg
}

fn draw_edge(svg: &mut String, graph: &Graph, layout: &Layout, number: usize, edge: &Edge) {
    let route = layout
        .routes
        .get(number)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let (Some((_, start)), Some((end, _))) = (route.first(), route.last()) else {
        return;
    };
    let (path, label) = if (start.0 - end.0).abs() < 1.0 {
        // In one column, or at one node: around the right side.
        let ((x, a), (_, b)) = (*start, *end);
        let reach = x + 44.0 + (a - b).abs().min(200.0) * 0.35;
        let path = format!("M{x:.1} {a:.1}C{reach:.1} {a:.1} {reach:.1} {b:.1} {x:.1} {b:.1}");
        (path, (x + (reach - x) * 0.75, f64::midpoint(a, b)))
    } else {
        curve(route)
    };
    let name = |node: usize| graph.nodes.get(node).map_or("", |node| node.name.as_str());
    let _ = write!(
        svg,
        "<g class=\"flow\" data-edge=\"{number}\"><title>{title}</title><path class=\"edge {word}\" d=\"{path}\"/><text \
         class=\"traffic\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text></g>",
        label.0,
        label.1,
        escape(&edge.label()),
        title = escape(&format!(
            "{} → {}: {} ({})",
            name(edge.from),
            name(edge.to),
            edge.traffic.join(", "),
            edge.state.label()
        )),
        word = edge.state.word(),
    );
}

/// Through all places on the way, and where there is room for words.
fn curve(route: &[(Point, Point)]) -> (String, Point) {
    let mut path = String::new();
    let mut label = (0.0, 0.0);
    let mut last: Option<Point> = None;
    for (enter, leave) in route {
        let _ = match last {
            None => write!(path, "M{:.1} {:.1}", enter.0, enter.1),
            Some((x, y)) => {
                let half = f64::midpoint(x, enter.0);
                if label == (0.0, 0.0) {
                    // Near the caller, where fewer edges have come together.
                    label = (x + (enter.0 - x) * 0.42, y + (enter.1 - y) * 0.4 - 4.0);
                }
                write!(
                    path,
                    "C{half:.1} {y:.1} {half:.1} {ey:.1} {ex:.1} {ey:.1}",
                    ex = enter.0,
                    ey = enter.1
                )
            }
        };
        if enter != leave {
            let _ = write!(path, "H{:.1}", leave.0);
        }
        last = Some(*leave);
    }
    (path, label)
}

fn short(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars()
        .take(room.saturating_sub(1))
        .chain(['…'])
        .collect()
}
