//! Pictures of who may talk to whom.

use super::*;

fn drawn() -> Graph {
    let (set, inventory) = shop();
    let flows = observed::read(&source("o.jsonl", OBSERVED), &inventory).unwrap();
    graph(&set, &inventory, Some(&flows), false)
}

fn edges(graph: &Graph) -> Vec<(String, String, State, String)> {
    let name = |node: usize| graph.nodes[node].name.clone();
    let edge = |edge: &handfast_policies::tools::graph::Edge| {
        (
            name(edge.from),
            name(edge.to),
            edge.state,
            edge.traffic.join(" "),
        )
    };
    graph.edges.iter().map(edge).collect()
}

#[test]
fn configuration_and_observation_are_told_apart() {
    let edges = edges(&drawn());
    let has = |from: &str, to: &str, state, traffic: &str| {
        let wanted = (from.to_owned(), to.to_owned(), state, traffic.to_owned());
        assert!(edges.contains(&wanted), "{wanted:?} in {edges:#?}");
    };
    has("shop/gateway", "shop/web", State::Proven, "tcp/8080");
    has("world", "shop/gateway", State::Open, "tcp/443");
    has(
        "monitoring/prometheus",
        "shop/web",
        State::AuditOnly,
        "tcp/9100",
    );
    has(
        "monitoring/prometheus",
        "shop/orders-db",
        State::NeverSeen,
        "tcp/5432-5433",
    );
    has("shop/reports", "shop/orders-db", State::Denied, "tcp/5432");
    has("shop/reports", "shop/web", State::Unexpected, "tcp/9100");
    has("shop/orders", "192.0.2.53", State::Open, "udp/53");
    has(
        "shop/orders",
        "192.0.2.53",
        State::NeverSeen,
        "tcp/53 sctp/53",
    );
    has(
        "shop/orders",
        "198.51.100.0/24",
        State::NeverSeen,
        "tcp/443",
    );
}

#[test]
fn what_is_said_of_the_world_is_not_said_again_of_its_parts() {
    let graph = drawn();
    assert!(
        !graph
            .nodes
            .iter()
            .any(|node| node.name.starts_with("198.51.100.128"))
    );
    assert!(!graph.nodes.iter().any(|node| node.name == "host"));
}

#[test]
fn every_form_has_every_node_and_edge() {
    let graph = drawn();
    let (dot, svg, html) = (dot(&graph), svg(&graph), html(&graph, "The <shop>"));
    assert_eq!(dot.matches(" -> n").count(), graph.edges.len());
    for text in [&svg, &html] {
        assert_eq!(text.matches("data-node=").count(), graph.nodes.len());
        assert_eq!(text.matches("data-edge=").count(), graph.edges.len());
    }
    assert!(html.contains("<title>The &lt;shop&gt;</title>"));
}

#[test]
fn the_page_fetches_nothing_and_names_cannot_break_out_of_it() {
    let evil = "</script><script>alert(1)</script>";
    let workloads =
        format!("- {{name: '{evil}', spiffeId: 'spiffe://example.org/a', labels: {{app: a}}}}\n");
    let inventory = Inventory::read(&source("w", &workloads)).unwrap();
    let set = native(&["endpointSelector: {}, ingress: [{fromEntities: [world]}]"]);
    let page = html(&graph(&set, &inventory, None, false), evil);
    assert!(!page.contains("<script>alert"), "{page}");
    assert_eq!(page.matches("<script").count(), 2);
    assert!(
        !page.contains("http://")
            || page.matches("http://").count()
                == page.matches("http://www.w3.org/2000/svg").count()
    );
    assert!(!page.contains("https://"));
}

#[test]
fn a_thousand_replicas_are_one_node() {
    let workloads: String = (0..1000)
        .map(|n| format!("- {{spiffeId: spiffe://example.org/w{n}, labels: {{app: web}}}}\n"))
        .collect();
    let inventory = Inventory::read(&source("w", &workloads)).unwrap();
    let set =
        native(&["endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{}]}]"]);
    let graph = graph(&set, &inventory, None, false);
    assert_eq!(
        graph
            .nodes
            .iter()
            .filter(|node| node.kind == "workload")
            .count(),
        1
    );
    assert_eq!(graph.nodes[0].alike, 999);
}

#[test]
fn a_line_that_is_no_event_is_an_error_with_its_number() {
    let text =
        OBSERVED.lines().next().unwrap().to_owned() + "\n{\"verdict\": \"forwarded\"}\nnonsense\n";
    let errors = observed::read(&source("o.jsonl", &text), &Inventory::default()).unwrap_err();
    assert_eq!(errors.iter().map(|e| e.line).collect::<Vec<_>>(), [2, 3]);
}
