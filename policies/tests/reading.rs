//! What is refused, with the words and the places that users see.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use handfast_policies::{PolicySet, Source, split};

fn read(text: &str) -> Result<PolicySet, Vec<String>> {
    let source = Source {
        name: "p.yaml".to_owned(),
        text: text.to_owned(),
    };
    PolicySet::read(vec![source]).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn refused(text: &str) -> Vec<String> {
    read(text).expect_err("the text is refused")
}

/// A good document but for one line of its first rule.
fn with_rule(rule: &str) -> String {
    let rule: String = rule.lines().map(|line| format!("      {line}\n")).collect();
    let rule = rule.replacen("      ", "    - ", 1);
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata:\n  name: web\nspec:\n  \
         endpointSelector: {{}}\n  ingress:\n{rule}"
    )
}

fn native(rule: &str) -> String {
    with_rule(rule)
        .replace("cilium.io/v2", "handfast.io/v1alpha1")
        .replace("CiliumNetworkPolicy", "HandfastPolicy")
}

#[track_caller]
fn says(text: &str, errors: &[&str]) {
    assert_eq!(refused(text), errors, "\n{text}");
}

#[test]
fn the_examples_are_read() {
    for (name, text) in [
        ("nginx.yaml", include_str!("../../examples/nginx.yaml")),
        (
            "database.yaml",
            include_str!("../../examples/database.yaml"),
        ),
    ] {
        let set = read(text).unwrap_or_else(|errors| panic!("{name}: {errors:#?}"));
        assert_eq!(set.policies().len(), 1, "{name}");
    }
}

#[test]
fn a_typo_in_a_field_names_its_place_and_what_was_meant() {
    says(
        &with_rule("fromEndpoint:\n- matchLabels: {a: b}"),
        &["p.yaml:8:7: spec.ingress[0].fromEndpoint: unknown field; did you mean fromEndpoints?"],
    );
    says(
        &with_rule("fromEndpoints:\n- matchLabel: {a: b}"),
        &[
            "p.yaml:9:9: spec.ingress[0].fromEndpoints[0].matchLabel: unknown field; did you mean matchLabels?",
        ],
    );
    says(
        &with_rule("banana: 1"),
        &[
            "p.yaml:8:7: spec.ingress[0].banana: unknown field: use fromEndpoints, fromEntities, fromCIDR, \
           fromCIDRSet, toPorts, icmps or authentication",
        ],
    );
}

#[test]
fn what_is_not_enforced_is_refused_with_what_to_write_instead() {
    let place = "p.yaml:8:7: spec.ingress[0]";
    for (rule, error) in [
        (
            "fromRequires: []",
            ".fromRequires: handfast does not enforce fromRequires: add the labels to each selector of the rules",
        ),
        (
            "fromNodes: []",
            ".fromNodes: handfast does not enforce fromNodes: write the nodes' addresses as CIDRs",
        ),
        (
            "toEndpoints: [{}]",
            ".toEndpoints: handfast does not enforce toEndpoints: in an ingress rule write fromEndpoints",
        ),
        (
            "encryption: {mode: required}",
            ".encryption: handfast does not enforce encryption: a HandfastPolicy has it",
        ),
    ] {
        says(&with_rule(rule), &[&format!("{place}{error}")]);
    }
}

#[test]
fn layer_seven_rules_are_refused() {
    says(
        &with_rule("toPorts:\n- ports: [{port: http}]\n  rules: {http: [{method: GET}]}"),
        &[
            "p.yaml:10:9: spec.ingress[0].toPorts[0].rules: handfast does not enforce rules: requests are not \
             looked into: remove it, and let the workload judge them",
        ],
    );
}

#[test]
fn ports_that_are_none_are_refused() {
    let place = "p.yaml:9:";
    for (port, error) in [
        (
            "{port: 65536}",
            "24: spec.ingress[0].toPorts[0].ports[0].port: not a port: write a number from 0 to 65535",
        ),
        (
            "{port: -1}",
            "24: spec.ingress[0].toPorts[0].ports[0].port: not a port: write a number from 0 to 65535",
        ),
        (
            "{port: \"\"}",
            "24: spec.ingress[0].toPorts[0].ports[0].port: not a port: write a number from 0 to 65535",
        ),
        (
            "{port: \"080\"}",
            "24: spec.ingress[0].toPorts[0].ports[0].port: a port with a leading zero could be meant as octal: \
             write it without",
        ),
        (
            "{port: 90, endPort: 80}",
            "37: spec.ingress[0].toPorts[0].ports[0].endPort: the range is turned round: endPort 80 is below port 90",
        ),
        (
            "{port: 80, protocol: TPC}",
            "38: spec.ingress[0].toPorts[0].ports[0].protocol: unknown protocol \"TPC\": use TCP, UDP, SCTP or ANY; \
             did you mean TCP?",
        ),
        (
            "{port: 80, protocol: ICMP}",
            "38: spec.ingress[0].toPorts[0].ports[0].protocol: ICMP has no ports: name its messages with icmps, or \
             leave toPorts out to mean every protocol",
        ),
        (
            "{protocol: TCP}",
            "17: spec.ingress[0].toPorts[0].ports[0]: port is missing: write a number, or \"0\" for every port",
        ),
    ] {
        says(
            &with_rule(&format!("toPorts:\n- ports: [{port}]")),
            &[&format!("{place}{error}")],
        );
    }
}

#[test]
fn selectors_that_could_not_mean_anything_are_refused() {
    let expression = "spec.ingress[0].fromEndpoints[0].matchExpressions[0]";
    for (item, error) in [
        (
            "matchExpressions: [{key: a, operator: Is, values: [b]}]",
            format!("p.yaml:9:47: {expression}.operator: unknown operator \"Is\": use In, NotIn, Exists or \
                     DoesNotExist; did you mean In?"),
        ),
        (
            "matchExpressions: [{key: a, operator: In}]",
            format!("p.yaml:9:28: {expression}: values is missing: In and NotIn compare with a list of values"),
        ),
        (
            "matchExpressions: [{key: a, operator: Exists, values: [b]}]",
            format!("p.yaml:9:28: {expression}: Exists and DoesNotExist take no values: remove them, or use In or \
                     NotIn"),
        ),
        (
            "matchLabels: {a: true}",
            "p.yaml:9:26: spec.ingress[0].fromEndpoints[0].matchLabels.a: expected a string, found a boolean: write \
             \"true\" in quotes"
                .to_owned(),
        ),
        (
            "matchLabels: {\"container:a\": b}",
            "p.yaml:9:38: spec.ingress[0].fromEndpoints[0].matchLabels.container:a: unknown label source \
             \"container\": use k8s:, any:, reserved: or none"
                .to_owned(),
        ),
        (
            "matchLabels: {\"reserved:moon\": \"\"}",
            "p.yaml:9:40: spec.ingress[0].fromEndpoints[0].matchLabels.reserved:moon: unknown reserved: label: use \
             reserved:host or reserved:world"
                .to_owned(),
        ),
    ] {
        says(&with_rule(&format!("fromEndpoints:\n- {item}")), &[&error]);
    }
}

#[test]
fn prefixes_with_host_bits_and_exceptions_outside_are_refused() {
    says(
        &with_rule("fromCIDR: [10.1.2.3/8, 10.0.0.0/33, \"::ffff:10.0.0.0/104\"]"),
        &[
            "p.yaml:8:18: spec.ingress[0].fromCIDR[0]: 10.1.2.3/8 has bits set beyond its length: write 10.0.0.0/8",
            "p.yaml:8:30: spec.ingress[0].fromCIDR[1]: not a prefix: write one such as 10.0.0.0/8 or 2001:db8::/32",
            "p.yaml:8:43: spec.ingress[0].fromCIDR[2]: an IPv4-mapped prefix: write it as IPv4",
        ],
    );
    says(
        &with_rule("fromCIDRSet:\n- cidr: 10.0.0.0/8\n  except: [11.0.0.0/16]"),
        &[
            "p.yaml:10:18: spec.ingress[0].fromCIDRSet[0].except[0]: 11.0.0.0/16 is not inside 10.0.0.0/8, so there \
           is nothing to except",
        ],
    );
    says(
        &with_rule("fromCIDR: [10.0.0.0/8]\nfromEndpoints: [{}]"),
        &[
            "p.yaml:8:7: spec.ingress[0]: fromEndpoints and fromCIDR cannot stand in one rule: write a rule for each",
        ],
    );
}

#[test]
fn authentication_says_which_modes_each_kind_has() {
    says(
        &with_rule("toPorts: [{ports: [{port: 1}]}]\nauthentication: {mode: audit}"),
        &[
            "p.yaml:9:30: spec.ingress[0].authentication.mode: unknown mode \"audit\": use required, disabled or \
           test-always-fail",
        ],
    );
    says(
        &with_rule("toPorts: [{ports: [{port: 1}]}]\nauthentication: {mode: require}"),
        &[
            "p.yaml:9:30: spec.ingress[0].authentication.mode: unknown mode \"require\": use required, disabled or \
           test-always-fail; did you mean required?",
        ],
    );
    says(
        &native(
            "authentication: {mode: required, peers: [spiffe://a/b*, a/b, \"spiffe://a/**/b\"], maxAge: 1s}",
        ),
        &[
            "p.yaml:8:48: spec.ingress[0].authentication.peers[0]: not a SPIFFE ID pattern: * and ** stand for whole \
             path segments only; write one such as spiffe://example.org/ns/*/sa/web",
            "p.yaml:8:63: spec.ingress[0].authentication.peers[1]: not a SPIFFE ID pattern: it does not begin with \
             spiffe://; write one such as spiffe://example.org/ns/*/sa/web",
            "p.yaml:8:68: spec.ingress[0].authentication.peers[2]: not a SPIFFE ID pattern: ** may only be the last \
             segment; write one such as spiffe://example.org/ns/*/sa/web",
        ],
    );
    says(
        &native("fromEndpoints: [{}]\nauthentication: {mode: required, maxAge: 1s}"),
        &["p.yaml:9:48: spec.ingress[0].authentication.maxAge: too short: 30 s is the least"],
    );
    says(
        &native("authentication: {mode: required}"),
        &[
            "p.yaml:8:7: spec.ingress[0]: the rule names neither peers nor ports, and such a rule allows nothing: add \
           fromEndpoints or toPorts",
        ],
    );
}

#[test]
fn a_document_that_has_no_effect_is_refused() {
    let text = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a}\nspec: {endpointSelector: \
                {}, ingress: []}\n";
    says(
        text,
        &[
            "p.yaml:4:7: spec: there is no rule, so the policy has no effect: to deny everything in a direction, write \
           one empty rule there, such as ingress: [{}]",
        ],
    );
}

#[test]
fn other_kinds_and_versions_are_refused_with_what_to_write_instead() {
    says(
        "kind: AdminNetworkPolicy",
        &[
            "p.yaml:1:7: kind: handfast does not read the kind AdminNetworkPolicy: write a \
             CiliumClusterwideNetworkPolicy, or a HandfastPolicy without a namespace",
        ],
    );
    says(
        "kind: CiliumNetworkPolcy",
        &[
            "p.yaml:1:7: kind: unknown kind \"CiliumNetworkPolcy\": use HandfastPolicy, CiliumNetworkPolicy, \
             CiliumClusterwideNetworkPolicy or NetworkPolicy; did you mean CiliumNetworkPolicy?",
        ],
    );
    says(
        "kind: HandfastPolicy\napiVersion: handfast.io/v1",
        &[
            "p.yaml:2:13: apiVersion: unknown version \"handfast.io/v1\" of HandfastPolicy: write \
           handfast.io/v1alpha1",
        ],
    );
}

#[test]
fn a_missing_selector_is_refused_since_only_an_empty_one_selects_all() {
    let text = with_rule("fromEndpoints: [{}]").replace("  endpointSelector: {}\n", "");
    says(
        &text,
        &["p.yaml:6:3: spec: endpointSelector is missing: write {} to select every workload"],
    );
}

#[test]
fn a_selector_outside_the_policys_own_namespace_is_refused() {
    let text = with_rule("fromEndpoints: [{}]")
        .replace("  name: web\n", "  name: web\n  namespace: shop\n")
        .replace(
            "endpointSelector: {}",
            "endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: bank}}",
        );
    says(
        &text,
        &[
            "p.yaml:7:21: spec.endpointSelector: selects another namespace than the policy's own, shop, so it selects \
           nothing",
        ],
    );
}

#[test]
fn an_ip_block_that_may_mean_pods_says_that_it_does_not() {
    let notes = |cidr: &str| {
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec:\n  \
             podSelector: {{}}\n  egress:\n  - to:\n    - ipBlock: {{cidr: {cidr}}}\n"
        );
        let set = read(&text).unwrap();
        let notes: Vec<_> = set
            .notes()
            .map(|note| (note.line, note.field.clone()))
            .collect();
        notes
    };
    let said = [(8, "spec.egress[0].to[0].ipBlock".to_owned())];
    for cidr in ["0.0.0.0/0", "10.0.0.0/8", "'::/0'", "'fd00::/8'"] {
        assert_eq!(notes(cidr), said, "{cidr}");
    }
    assert_eq!(notes("203.0.113.0/24"), []);
}

#[test]
fn one_broken_document_makes_the_whole_set_unread() {
    let good = with_rule("fromEndpoints: [{}]");
    let broken = good
        .replace("name: web", "name: other")
        .replace("ingress", "ingres");
    let errors = refused(&format!("{good}---\n{broken}"));
    assert_eq!(
        errors,
        ["p.yaml:16:3: spec.ingres: unknown field; did you mean ingress?",]
    );
}

#[test]
fn two_policies_of_one_name_are_refused() {
    let good = with_rule("fromEndpoints: [{}]");
    says(
        &format!("{good}---\n{good}"),
        &[
            "p.yaml:10:1: metadata.name: there is a CiliumNetworkPolicy web already, at p.yaml:1: rename one of them",
        ],
    );
    let elsewhere = good.replace("  name: web\n", "  name: web\n  namespace: shop\n");
    assert!(read(&format!("{good}---\n{elsewhere}")).is_ok());
}

#[test]
fn duplicate_keys_aliases_and_tags_are_refused() {
    says(
        "a: 1\nb: 2\na: 3\n",
        &["p.yaml:3:1: the key \"a\" stands here twice: remove one"],
    );
    says(
        "a: &x [1]\nb: *x\n",
        &["p.yaml:2:4: aliases (*name) are not read: write the value out"],
    );
    says(
        "a: !!binary aGk=\n",
        &["p.yaml:1:4: tags (!name) are not read: write the value without one"],
    );
}

#[test]
fn deep_nesting_and_large_texts_are_refused() {
    let deep = "[".repeat(200);
    assert_eq!(
        refused(&deep),
        ["p.yaml:1:33: nested deeper than 32 levels"]
    );
    let blocks: String = (0..200).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    assert_eq!(
        refused(&blocks),
        ["p.yaml:33:33: nested deeper than 32 levels"]
    );
    let large = format!("a: {}\n", "x".repeat(1 << 20));
    assert_eq!(
        refused(&large),
        [
            "p.yaml:1:1: the text has 1048580 bytes, and 1048576 is the most that is read: split it into several files"
        ]
    );
}

#[test]
fn a_text_that_is_no_yaml_says_where() {
    let errors = refused("a: [1, 2\nb: }\n");
    assert_eq!(errors.len(), 1);
    assert!(errors[0].starts_with("p.yaml:2:"), "{errors:?}");
    assert!(errors[0].contains("this is not YAML"), "{errors:?}");
}

#[test]
fn an_empty_text_is_an_empty_set() {
    for text in ["", "---\n", "# only a comment\n", "---\n---\n"] {
        assert!(read(text).unwrap().policies().is_empty(), "{text:?}");
    }
}

#[test]
fn what_kubernetes_adds_to_an_object_is_read_over() {
    let text = with_rule("fromEndpoints: [{}]")
        .replace(
            "  name: web\n",
            "  name: web\n  uid: 1a\n  creationTimestamp: null\n  generation: 3\n  managedFields: [{manager: x}]\n",
        )
        + "status: {conditions: []}\n";
    assert!(read(&text).is_ok());
}

#[test]
fn json_is_read_too() {
    let text = r#"{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "a"},
        "specs": [{"endpointSelector": {}, "egress": [{}]}]}"#;
    assert_eq!(read(text).unwrap().policies()[0].egress, 1);
}

#[test]
fn the_number_of_errors_listed_is_bounded() {
    let fields: String = (0..1000).map(|n| format!("x{n}: 1\n")).collect();
    let errors = refused(&with_rule(&fields));
    assert_eq!(errors.len(), 101);
    assert!(
        errors[100].ends_with("there are more errors, which are not listed")
            || errors.iter().any(|e| e.contains("not listed"))
    );
}

#[test]
fn a_text_is_split_into_documents_that_say_the_same() {
    let good = with_rule("fromEndpoints: [{}]");
    let named = |name: &str| good.replace("name: web", &format!("name: {name}"));
    let text = format!(
        "# über alles\n{}---\n# the second\n{}...\n---\n{}",
        named("a"),
        named("b"),
        named("c")
    );
    let pieces = split(&text);
    let names: Vec<_> = pieces
        .iter()
        .flat_map(|piece| read(piece).unwrap().policies().to_vec())
        .map(|policy| policy.name)
        .collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(pieces.concat(), text);
    assert!(pieces[1].contains("# the second"));
    assert_eq!(split("a: [\n---\nb"), ["a: [\n---\nb"]);
}

#[test]
fn a_list_as_kubectl_prints_it_is_its_items() {
    let item = |name: &str, rule: &str| {
        format!(
            "- apiVersion: cilium.io/v2\n  kind: CiliumNetworkPolicy\n  metadata: {{name: {name}, namespace: shop, \
             resourceVersion: \"7\", uid: u}}\n  spec:\n    endpointSelector: {{}}\n    ingress:\n    - {rule}\n"
        )
    };
    let list = |rule: &str| {
        format!(
            "apiVersion: v1\nitems:\n{}{}kind: List\nmetadata: {{resourceVersion: \"\"}}\n",
            item("a", "fromEndpoints: [{}]"),
            item("b", rule)
        )
    };
    let good = list("toPorts: [{ports: [{port: \"80\"}]}]");
    let names = |text: &str| -> Vec<String> {
        let set = read(text).unwrap();
        let policies = set.policies().iter();
        policies.map(|policy| policy.name.clone()).collect()
    };
    assert_eq!(names(&good), ["a", "b"]);
    let pieces = split(&good);
    assert_eq!(pieces.len(), 2);
    assert_eq!(names(&pieces[1]), ["b"]);

    let wrong = read(&list("fromEndpoint: [{}]")).unwrap_err();
    let said = wrong[0].to_string();
    assert!(
        said.contains(":16:7: spec.ingress[0].fromEndpoint:"),
        "{said}"
    );
    // A list has nothing of its own to say, and is in no other.
    assert!(read(&format!("{good}spec: {{}}\n")).is_err());
    assert!(read("apiVersion: v1\nkind: List\nitems:\n- kind: List\n  items: []\n").is_err());
    assert!(names("apiVersion: v1\nkind: List\nitems: []\n").is_empty());
}

#[test]
fn files_of_the_tools_are_told_from_policies() {
    for (text, what) in [
        ("policies: [p.yaml]\ntests: []\n", "policy test"),
        ("workloads: []\n", "--workloads"),
    ] {
        let said = read(text).unwrap_err()[0].to_string();
        assert!(said.contains(what) && said.contains("no policy"), "{said}");
    }
}
