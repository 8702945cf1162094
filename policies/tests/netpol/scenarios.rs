//! The scenarios, each under the name that it has in Kubernetes' own suite (`test/e2e/network/netpol`).
//!
//! As there, loopback is not judged. Three of them write a pod's address as `ipBlock`: here a prefix speaks of
//! addresses outside the mesh alone, as Kubernetes advises (pods are selected by labels), so they are asked of a
//! server outside, and one more says what happens to a pod's own address.

use handfast_policies::Protocol::{self, Sctp, Tcp, Udp};

use super::cluster::Cluster;

fn in_x(pod: &str) -> bool {
    pod.starts_with("x/")
}

const NS: &str = "kubernetes.io/metadata.name";

/// A policy for pod a that lets in what `from` lists.
fn to_a(from: &str) -> String {
    format!("{{podSelector: {{matchLabels: {{pod: a}}}}, ingress: [{{from: [{from}]}}]}}")
}

#[test]
fn should_support_a_default_deny_ingress_policy() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "y/b"]);
    cluster.policy(
        "x",
        "deny-ingress",
        "{podSelector: {}, ingress: [], policyTypes: [Ingress]}",
    );
    cluster.expect(Tcp, 80, |_, to| !in_x(to));
}

#[test]
fn should_support_a_default_deny_all_policy() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a"]);
    cluster.policy(
        "x",
        "deny-all",
        "{podSelector: {}, policyTypes: [Ingress, Egress]}",
    );
    cluster.expect(Tcp, 80, |from, to| !in_x(from) && !in_x(to));
}

#[test]
fn should_enforce_policy_to_allow_traffic_from_pods_within_server_namespace_based_on_pod_selector()
{
    let mut cluster = Cluster::new(&["x/a", "x/b", "x/c", "y/a"]);
    cluster.policy("x", "p", &to_a("{podSelector: {matchLabels: {pod: b}}}"));
    cluster.expect(Tcp, 80, |from, to| to != "x/a" || from == "x/b");
}

#[test]
fn should_enforce_policy_to_allow_ingress_traffic_for_a_target() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a"]);
    cluster.policy("x", "deny", "{podSelector: {}, policyTypes: [Ingress]}");
    cluster.policy(
        "x",
        "allow",
        &to_a("{podSelector: {}, namespaceSelector: {}}"),
    );
    cluster.expect(Tcp, 80, |_, to| to != "x/b");
}

#[test]
fn should_enforce_policy_to_allow_ingress_traffic_from_pods_in_all_namespaces() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "z/a"]);
    cluster.policy("x", "p", &to_a("{namespaceSelector: {matchLabels: {}}}"));
    cluster.expect(Tcp, 80, |_, _| true);
}

#[test]
fn should_enforce_policy_to_allow_traffic_only_from_a_different_namespace_based_on_namespace_selector()
 {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "z/a"]);
    cluster.policy(
        "x",
        "p",
        &to_a(&format!(
            "{{namespaceSelector: {{matchLabels: {{{NS}: y}}}}}}"
        )),
    );
    cluster.expect(Tcp, 80, |from, to| to != "x/a" || from == "y/a");
}

#[test]
fn should_enforce_policy_based_on_pod_selector_with_match_expressions() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a"]);
    cluster.policy(
        "x",
        "p",
        &to_a("{podSelector: {matchExpressions: [{key: pod, operator: In, values: [b]}]}}"),
    );
    cluster.expect(Tcp, 80, |from, to| to != "x/a" || from == "x/b");
}

/// Namespaces by an expression on the label that each has.
fn namespaces(operator: &str, namespace: &str) -> String {
    format!(
        "namespaceSelector: {{matchExpressions: [{{key: {NS}, operator: {operator}, values: [{namespace}]}}]}}"
    )
}

#[test]
fn should_enforce_policy_based_on_namespace_selector_with_match_expressions() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "z/a"]);
    cluster.policy("x", "p", &to_a(&format!("{{{}}}", namespaces("In", "y"))));
    cluster.expect(Tcp, 80, |from, to| to != "x/a" || from == "y/a");
}

#[test]
fn should_enforce_policy_based_on_pod_selector_or_namespace_selector() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "x/c", "y/a"]);
    let either = format!(
        "{{{}}}, {{podSelector: {{matchLabels: {{pod: b}}}}}}",
        namespaces("NotIn", "x")
    );
    cluster.policy("x", "p", &to_a(&either));
    cluster.expect(Tcp, 80, |from, to| to != "x/a" || from != "x/c");
}

#[test]
fn should_enforce_policy_based_on_pod_selector_and_namespace_selector() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "y/b", "z/b"]);
    let both = format!(
        "{{{}, podSelector: {{matchLabels: {{pod: b}}}}}}",
        namespaces("NotIn", "x")
    );
    cluster.policy("x", "p", &to_a(&both));
    cluster.expect(Tcp, 80, |from, to| {
        to != "x/a" || ["y/b", "z/b"].contains(&from)
    });
}

#[test]
fn should_enforce_policy_based_on_multiple_pod_selectors_and_namespace_selectors() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "y/b", "y/c"]);
    let both = format!(
        "{{{}, podSelector: {{matchExpressions: [{{key: pod, operator: In, values: [b, c]}}]}}}}",
        namespaces("NotIn", "x")
    );
    cluster.policy("x", "p", &to_a(&both));
    cluster.expect(Tcp, 80, |from, to| {
        to != "x/a" || ["y/b", "y/c"].contains(&from)
    });
}

#[test]
fn should_enforce_policy_based_on_any_pod_selectors() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "x/c", "x/d"]);
    cluster.policy(
        "x",
        "p",
        &to_a("{podSelector: {matchLabels: {pod: b}}}, {podSelector: {matchLabels: {pod: c}}}"),
    );
    cluster.expect(Tcp, 80, |from, to| to != "x/a" || from != "x/d");
}

fn only_from_y_a(protocol: Protocol) {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "y/b", "z/a"]);
    let both = format!(
        "{{namespaceSelector: {{matchLabels: {{{NS}: y}}}}, podSelector: {{matchLabels: {{pod: a}}}}}}"
    );
    cluster.policy("x", "p", &to_a(&both));
    cluster.expect(protocol, 80, |from, to| to != "x/a" || from == "y/a");
}

#[test]
fn should_enforce_policy_to_allow_traffic_only_from_a_pod_in_a_different_namespace_based_on_pod_selector_and_namespace_selector()
 {
    only_from_y_a(Tcp);
}

/// Namespace y may reach pod a on one port.
fn from_y_on(port: &str, protocol: Protocol) -> String {
    let protocol = protocol.to_string().to_uppercase();
    format!(
        "{{podSelector: {{matchLabels: {{pod: a}}}}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: \
         {{{NS}: y}}}}}}], ports: [{{port: {port}, protocol: {protocol}}}]}}]}}"
    )
}

fn based_on_ports(protocol: Protocol) {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "y/b", "z/a"]);
    cluster.policy("x", "p", &from_y_on("81", protocol));
    cluster.expect(protocol, 81, |from, to| {
        to != "x/a" || from.starts_with("y/")
    });
    cluster.expect(protocol, 80, |_, to| to != "x/a");
}

#[test]
fn should_enforce_policy_based_on_ports() {
    based_on_ports(Tcp);
}

#[test]
fn should_enforce_multiple_stacked_policies_with_overlapping_pod_selectors() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "y/b", "z/a"]);
    let from_y = |from: &str, to: &str| to != "x/a" || from.starts_with("y/");
    cluster.policy("x", "81", &from_y_on("81", Tcp));
    cluster.expect(Tcp, 81, from_y);
    cluster.expect(Tcp, 80, |_, to| to != "x/a");
    cluster.policy("x", "80", &from_y_on("80", Tcp));
    cluster.expect(Tcp, 80, from_y);
    cluster.expect(Tcp, 81, from_y);
}

#[test]
fn should_support_allow_all_policy() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a"]);
    cluster.policy("x", "allow-all", "{podSelector: {}, ingress: [{}]}");
    cluster.expect(Tcp, 80, |_, _| true);
    cluster.expect(Tcp, 81, |_, _| true);
}

#[test]
fn should_allow_ingress_access_on_one_named_port() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a"]);
    cluster.policy(
        "x",
        "p",
        "{podSelector: {}, ingress: [{ports: [{port: serve-81-tcp}]}]}",
    );
    cluster.expect(Tcp, 81, |_, _| true);
    cluster.expect(Tcp, 80, |_, to| !in_x(to));
}

#[test]
fn should_allow_ingress_access_from_namespace_on_one_named_port() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "z/a"]);
    cluster.policy("x", "p", &from_y_on("serve-80-tcp", Tcp));
    cluster.expect(Tcp, 80, |from, to| to != "x/a" || from == "y/a");
    cluster.expect(Tcp, 81, |_, to| to != "x/a");
}

#[test]
fn should_allow_egress_access_on_one_named_port() {
    let mut cluster = Cluster::new(&["x/a", "y/a"]);
    cluster.policy(
        "x",
        "p",
        "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: serve-80-tcp}]}]}",
    );
    cluster.expect(Tcp, 80, |_, _| true);
    cluster.expect(Tcp, 81, |from, _| !in_x(from));
}

#[test]
fn should_enforce_updated_policy() {
    let mut cluster = Cluster::new(&["x/a", "y/a"]);
    cluster.policy("x", "p", "{podSelector: {}, ingress: [{}]}");
    cluster.expect(Tcp, 81, |_, _| true);
    cluster.policy("x", "p", "{podSelector: {}, ingress: []}");
    cluster.expect(Tcp, 81, |_, to| !in_x(to));
}

#[test]
fn should_allow_ingress_access_from_updated_namespace() {
    let mut cluster = Cluster::new(&["x/a", "y/a"]);
    cluster.policy(
        "x",
        "p",
        &to_a("{namespaceSelector: {matchLabels: {ns2: updated}}}"),
    );
    cluster.expect(Tcp, 80, |_, to| to != "x/a");
    cluster.label("y/", "io.cilium.k8s.namespace.labels.ns2", "updated");
    cluster.expect(Tcp, 80, |_, _| true);
}

#[test]
fn should_allow_ingress_access_from_updated_pod() {
    let mut cluster = Cluster::new(&["x/a", "x/b"]);
    cluster.policy(
        "x",
        "p",
        &to_a("{podSelector: {matchLabels: {pod: b, pod2: updated}}}"),
    );
    cluster.expect(Tcp, 80, |_, to| to != "x/a");
    cluster.label("x/b", "pod2", "updated");
    cluster.expect(Tcp, 80, |_, _| true);
}

#[test]
fn should_deny_ingress_from_pods_on_other_namespaces() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "z/a"]);
    cluster.policy(
        "x",
        "p",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {}}}]}]}",
    );
    cluster.expect(Tcp, 80, |from, to| !in_x(to) || in_x(from));
}

#[test]
fn should_deny_ingress_access_to_updated_pod() {
    let mut cluster = Cluster::new(&["x/a", "y/a"]);
    cluster.policy(
        "x",
        "p",
        "{podSelector: {matchLabels: {target: isolated}}, policyTypes: [Ingress]}",
    );
    cluster.expect(Tcp, 80, |_, _| true);
    cluster.label("x/a", "target", "isolated");
    cluster.expect(Tcp, 80, |_, to| to != "x/a");
}

#[test]
fn should_deny_egress_from_pods_based_on_pod_selector() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a"]);
    cluster.policy(
        "x",
        "p",
        "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress]}",
    );
    cluster.expect(Tcp, 80, |from, _| from != "x/a");
}

#[test]
fn should_deny_egress_from_all_pods_in_a_namespace() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a"]);
    cluster.policy("x", "p", "{podSelector: {}, policyTypes: [Egress]}");
    cluster.expect(Tcp, 80, |from, _| !in_x(from));
}

#[test]
fn should_work_with_ingress_egress_specified_together() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "x/c", "y/a"]);
    cluster.policy(
        "x",
        "p",
        "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress, Ingress], ingress: [{from: [{podSelector: \
         {matchLabels: {pod: b}}}]}], egress: [{ports: [{port: 80}]}]}",
    );
    let received = |from: &str, to: &str| to != "x/a" || from == "x/b";
    cluster.expect(Tcp, 80, received);
    cluster.expect(Tcp, 81, |from, to| received(from, to) && from != "x/a");
}

#[test]
fn should_support_denying_of_egress_traffic_on_the_client_side_even_if_the_server_explicitly_allows_this_traffic()
 {
    let mut cluster = Cluster::new(&["x/a", "y/a", "y/b"]);
    let y_a = format!(
        "{{namespaceSelector: {{matchLabels: {{{NS}: y}}}}, podSelector: {{matchLabels: {{pod: a}}}}}}"
    );
    cluster.policy(
        "x",
        "out",
        &format!(
            "{{podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Egress], egress: [{{to: [{y_a}]}}]}}"
        ),
    );
    for pod in ["a", "b"] {
        let from_x_a = format!(
            "{{podSelector: {{matchLabels: {{pod: {pod}}}}}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: \
             {{{NS}: x}}}}, podSelector: {{matchLabels: {{pod: a}}}}}}]}}]}}"
        );
        cluster.policy("y", pod, &from_x_a);
    }
    cluster.expect(Tcp, 80, |from, to| match (from, to) {
        ("x/a", "y/a") => true,
        ("x/a", _) | (_, "y/a" | "y/b") => false,
        _ => true,
    });
}

#[test]
fn should_enforce_egress_policy_allowing_traffic_to_a_server_in_a_different_namespace_based_on_pod_selector_and_namespace_selector()
 {
    let mut cluster = Cluster::new(&["x/a", "y/a", "y/b"]);
    cluster.policy(
        "x",
        "p",
        &format!(
            "{{podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Egress], egress: [{{to: [{{namespaceSelector: \
             {{matchLabels: {{{NS}: y}}}}, podSelector: {{matchLabels: {{pod: a}}}}}}]}}]}}"
        ),
    );
    cluster.expect(Tcp, 80, |from, to| from != "x/a" || to == "y/a");
}

#[test]
fn should_enforce_ingress_policy_allowing_any_port_traffic_to_a_server_on_a_specific_protocol() {
    let mut cluster = Cluster::new(&["x/a", "y/a"]);
    cluster.policy(
        "x",
        "p",
        "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{protocol: TCP}]}]}",
    );
    cluster.expect(Tcp, 80, |_, _| true);
    cluster.expect(Udp, 80, |_, to| to != "x/a");
}

#[test]
fn should_enforce_multiple_ingress_policies_with_ingress_allow_all_policy_taking_precedence() {
    let mut cluster = Cluster::new(&["x/a", "y/a"]);
    cluster.policy(
        "x",
        "80",
        "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}",
    );
    cluster.expect(Tcp, 81, |_, to| !in_x(to));
    cluster.policy("x", "all", "{podSelector: {}, ingress: [{}]}");
    cluster.expect(Tcp, 81, |_, _| true);
}

#[test]
fn should_enforce_multiple_egress_policies_with_egress_allow_all_policy_taking_precedence() {
    let mut cluster = Cluster::new(&["x/a", "y/a"]);
    cluster.policy(
        "x",
        "80",
        "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}",
    );
    cluster.expect(Tcp, 81, |from, _| !in_x(from));
    cluster.policy(
        "x",
        "all",
        "{podSelector: {}, policyTypes: [Egress], egress: [{}]}",
    );
    cluster.expect(Tcp, 81, |_, _| true);
}

#[test]
fn should_stop_enforcing_policies_after_they_are_deleted() {
    let mut cluster = Cluster::new(&["x/a", "y/a"]);
    cluster.policy(
        "x",
        "deny-all",
        "{podSelector: {}, policyTypes: [Ingress, Egress]}",
    );
    cluster.expect(Tcp, 80, |from, to| !in_x(from) && !in_x(to));
    cluster.clear();
    cluster.expect(Tcp, 80, |_, _| true);
}

/// A policy that lets pod a send to prefixes alone.
fn a_to(block: &str) -> String {
    format!(
        "{{podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{{block}}}}}]}}]}}"
    )
}

#[test]
fn should_allow_egress_access_to_server_in_cidr_block() {
    let mut cluster = Cluster::new(&["x/a", "y/a", "y/b"]);
    cluster.policy("x", "p", &a_to("cidr: 192.0.2.7/32"));
    cluster.expect_outside("x/a", "192.0.2.7", 80, true);
    cluster.expect_outside("x/a", "192.0.2.8", 80, false);
    cluster.expect_outside("y/a", "192.0.2.8", 80, true);
    cluster.expect(Tcp, 80, |from, _| from != "x/a");
}

#[test]
fn should_enforce_except_clause_while_egress_access_to_server_in_cidr_block() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "x/c"]);
    cluster.policy(
        "x",
        "p",
        &a_to("cidr: 192.0.2.0/24, except: [192.0.2.7/32]"),
    );
    cluster.expect_outside("x/a", "192.0.2.7", 80, false);
    cluster.expect_outside("x/a", "192.0.2.8", 80, true);
}

#[test]
fn should_ensure_an_ip_overlapping_both_ip_block_cidr_and_ip_block_except_is_allowed() {
    let mut cluster = Cluster::new(&["x/a", "x/b", "x/c"]);
    cluster.policy(
        "x",
        "p",
        &a_to("cidr: 192.0.2.0/24, except: [192.0.2.7/32]"),
    );
    cluster.expect_outside("x/a", "192.0.2.7", 80, false);
    cluster.policy("x", "q", &a_to("cidr: 192.0.2.7/32"));
    cluster.expect_outside("x/a", "192.0.2.7", 80, true);
    cluster.expect_outside("x/a", "192.0.2.8", 80, true);
}

#[test]
fn an_ip_block_over_pods_addresses_selects_no_pod() {
    let mut cluster = Cluster::new(&["x/a", "y/b"]);
    cluster.policy("x", "p", &a_to("cidr: 0.0.0.0/0"));
    cluster.expect(Tcp, 80, |from, _| from != "x/a");
}

#[test]
fn should_enforce_policies_to_check_ingress_and_egress_policies_can_be_controlled_independently_based_on_pod_selector()
 {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a"]);
    cluster.policy(
        "x",
        "out",
        "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{}]}",
    );
    cluster.expect(Tcp, 80, |_, _| true);
    cluster.policy(
        "x",
        "in",
        "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress]}",
    );
    cluster.expect(Tcp, 80, |_, to| to != "x/a");
}

#[test]
fn should_not_mistakenly_treat_protocol_sctp_as_protocol_tcp_even_if_the_plugin_doesnt_support_sctp()
 {
    let mut cluster = Cluster::new(&["x/a", "y/a"]);
    cluster.policy("x", "deny", "{podSelector: {}, policyTypes: [Ingress]}");
    cluster.policy(
        "x",
        "sctp",
        "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 81, protocol: SCTP}]}]}",
    );
    cluster.expect(Tcp, 81, |_, to| !in_x(to));
    cluster.expect(Sctp, 81, |_, _| true);
}

#[test]
fn should_properly_isolate_pods_that_are_selected_by_a_policy_allowing_sctp_even_if_the_plugin_doesnt_support_sctp()
 {
    let mut cluster = Cluster::new(&["x/a", "y/a"]);
    cluster.policy(
        "x",
        "sctp",
        "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 80, protocol: SCTP}]}]}",
    );
    cluster.expect(Tcp, 81, |_, to| to != "x/a");
}

#[test]
fn should_not_allow_access_by_tcp_when_a_policy_specifies_only_udp() {
    let mut cluster = Cluster::new(&["x/a", "y/a"]);
    cluster.policy(
        "x",
        "udp",
        "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 81, protocol: UDP}]}]}",
    );
    cluster.expect(Tcp, 81, |_, to| to != "x/a");
    cluster.expect(Udp, 81, |_, _| true);
}

#[test]
fn should_enforce_policy_to_allow_traffic_based_on_namespace_selector_with_match_labels_using_default_ns_label()
 {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "z/a"]);
    cluster.policy(
        "x",
        "p",
        &to_a("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}"),
    );
    cluster.expect(Tcp, 80, |from, to| to != "x/a" || from == "y/a");
}

#[test]
fn should_enforce_policy_based_on_namespace_selector_with_match_expressions_using_default_ns_label()
{
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "z/a"]);
    cluster.policy(
        "x",
        "p",
        &format!(
            "{{podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Egress], egress: [{{to: [{{{}}}]}}]}}",
            namespaces("NotIn", "y")
        ),
    );
    cluster.expect(Tcp, 80, |from, to| from != "x/a" || to != "y/a");
}

fn default_deny_ingress(protocol: Protocol) {
    let mut cluster = Cluster::new(&["x/a", "x/b", "y/a", "y/b"]);
    cluster.policy("x", "deny", "{podSelector: {}, ingress: []}");
    cluster.expect(protocol, 80, |_, to| !in_x(to));
}

mod using_udp {
    use super::*;

    #[test]
    fn should_support_a_default_deny_ingress_policy() {
        default_deny_ingress(Udp);
    }

    #[test]
    fn should_enforce_policy_based_on_ports() {
        based_on_ports(Udp);
    }

    #[test]
    fn should_enforce_policy_to_allow_traffic_only_from_a_pod_in_a_different_namespace_based_on_pod_selector_and_namespace_selector()
     {
        only_from_y_a(Udp);
    }
}

mod using_sctp {
    use super::*;

    #[test]
    fn should_support_a_default_deny_ingress_policy() {
        default_deny_ingress(Sctp);
    }

    #[test]
    fn should_enforce_policy_based_on_ports() {
        based_on_ports(Sctp);
    }

    #[test]
    fn should_enforce_policy_to_allow_traffic_only_from_a_pod_in_a_different_namespace_based_on_pod_selector_and_namespace_selector()
     {
        only_from_y_a(Sctp);
    }
}
