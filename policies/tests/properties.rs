//! Random policies and random flows: the compiled entries against an interpreter that is slow and obvious.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::fmt::Write;

use handfast_policies::{
    Authentication, Direction, PolicySet, Ports, Protocol, Remote, Source, Verdict, Workload,
    lookup, ports_to_prefixes,
};
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use spiffe::SpiffeId;

/// Label keys and values are few, so that selectors and workloads meet.
const KEYS: [&str; 3] = ["app", "tier", "io.kubernetes.pod.namespace"];
const VALUES: [&str; 3] = ["a", "b", "c"];
const NETS: [&str; 5] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "2001:db8::/32",
];
const MODES: [(&str, Authentication); 4] = [
    ("disabled", Authentication::Disabled),
    ("audit", Authentication::Audit),
    ("required", Authentication::Required),
    ("test-always-fail", Authentication::TestAlwaysFail),
];

#[derive(Clone, Debug)]
enum Is {
    In(Vec<&'static str>),
    NotIn(Vec<&'static str>),
    Exists,
    Absent,
}

type Selector = Vec<(&'static str, Is)>;

#[derive(Clone, Debug)]
enum Peers {
    Unsaid,
    Endpoints(Vec<Selector>),
    World,
    Cidrs(Vec<&'static str>),
    CidrSet(&'static str, Vec<&'static str>),
}

#[derive(Clone, Debug)]
struct Port {
    first: u16,
    last: u16,
    protocol: Option<Protocol>,
}

#[derive(Clone, Debug)]
struct Rule {
    direction: Direction,
    deny: bool,
    peers: Peers,
    ports: Option<Vec<Port>>,
    mode: Option<(&'static str, Authentication)>,
}

#[derive(Clone, Debug)]
struct Policy {
    namespace: Option<&'static str>,
    subject: Selector,
    rules: Vec<Rule>,
}

// --- what the documents mean, said as plainly as can be ---

fn selects(selector: &Selector, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, is)| {
        let value = labels.get(*key).map(String::as_str);
        match is {
            Is::In(values) => value.is_some_and(|v| values.contains(&v)),
            Is::NotIn(values) => !value.is_some_and(|v| values.contains(&v)),
            Is::Exists => value.is_some(),
            Is::Absent => value.is_none(),
        }
    })
}

fn in_namespace(namespace: Option<&str>, labels: &BTreeMap<String, String>) -> bool {
    namespace.is_none_or(|n| labels.get(KEYS[2]).is_some_and(|l| l == n))
}

fn is_subject(policy: &Policy, local: &Workload) -> bool {
    in_namespace(policy.namespace, &local.labels) && selects(&policy.subject, &local.labels)
}

fn contains(net: &str, other: &IpNet) -> bool {
    net.parse::<IpNet>().unwrap().contains(other)
}

fn is_peer(policy: &Policy, rule: &Rule, remote: &Remote) -> bool {
    match (&rule.peers, remote) {
        (Peers::Unsaid, _) => rule.ports.is_some(),
        (Peers::Endpoints(selectors), Remote::Workload(workload)) => {
            selectors.iter().any(|selector| {
                let names_namespace = selector.iter().any(|(key, _)| *key == KEYS[2]);
                selects(selector, &workload.labels)
                    && (names_namespace || in_namespace(policy.namespace, &workload.labels))
            })
        }
        (Peers::World, Remote::World | Remote::Cidr(_)) => true,
        (Peers::Cidrs(nets), Remote::Cidr(net)) => nets.iter().any(|n| contains(n, net)),
        (Peers::CidrSet(cidr, except), Remote::Cidr(net)) => {
            contains(cidr, net) && !except.iter().any(|n| contains(n, net))
        }
        _ => false,
    }
}

/// How narrowly a rule speaks of the port: `None` if not at all.
fn width(rule: &Rule, protocol: Protocol, port: u16) -> Option<u32> {
    match &rule.ports {
        None => Some(1 << 20),
        Some(ports) => ports
            .iter()
            .filter(|p| {
                protocol != Protocol::Any
                    && p.protocol.is_none_or(|named| named == protocol)
                    && (p.first == 0 || (p.first..=p.last).contains(&port))
            })
            .map(|p| {
                if p.first == 0 {
                    65_535
                } else {
                    u32::from(p.last - p.first)
                }
            })
            .min(),
    }
}

#[derive(Debug, PartialEq)]
enum Meaning {
    NotSelected,
    Denied,
    Allowed(Option<Authentication>),
}

fn interpret(
    policies: &[Policy],
    local: &Workload,
    remote: &Remote,
    direction: Direction,
    protocol: Protocol,
    port: u16,
) -> Meaning {
    let mut selected = false;
    let mut matching = Vec::new();
    for policy in policies.iter().filter(|policy| is_subject(policy, local)) {
        for rule in policy
            .rules
            .iter()
            .filter(|rule| rule.direction == direction)
        {
            selected = true;
            if let (true, Some(width)) =
                (is_peer(policy, rule, remote), width(rule, protocol, port))
            {
                matching.push((width, matches!(rule.peers, Peers::Unsaid), rule));
            }
        }
    }
    if !selected {
        return Meaning::NotSelected;
    }
    if matching.is_empty() || matching.iter().any(|(_, _, rule)| rule.deny) {
        return Meaning::Denied;
    }
    let speaking: Vec<_> = matching
        .iter()
        .filter(|(_, _, rule)| rule.mode.is_some())
        .collect();
    let closest = speaking
        .iter()
        .map(|(width, unsaid, _)| (*width, *unsaid))
        .min();
    let modes = speaking
        .iter()
        .filter(|(w, u, _)| Some((*w, *u)) == closest);
    Meaning::Allowed(
        modes
            .filter_map(|(_, _, rule)| rule.mode.map(|(_, mode)| mode))
            .max(),
    )
}

// --- the same documents as text ---

fn selector_text(selector: &Selector) -> String {
    let expressions = selector.iter().map(|(key, is)| match is {
        Is::In(values) if values.len() == 1 => (Some(format!("{key}: {}", values[0])), None),
        Is::In(values) => (
            None,
            Some(format!(
                "{{key: {key}, operator: In, values: [{}]}}",
                values.join(", ")
            )),
        ),
        Is::NotIn(values) => (
            None,
            Some(format!(
                "{{key: \"k8s:{key}\", operator: NotIn, values: [{}]}}",
                values.join(", ")
            )),
        ),
        Is::Exists => (None, Some(format!("{{key: {key}, operator: Exists}}"))),
        Is::Absent => (
            None,
            Some(format!("{{key: {key}, operator: DoesNotExist}}")),
        ),
    });
    let (labels, expressions): (Vec<_>, Vec<_>) = expressions.unzip();
    let join =
        |parts: Vec<Option<String>>| parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    format!(
        "{{matchLabels: {{{}}}, matchExpressions: [{}]}}",
        join(labels),
        join(expressions)
    )
}

fn rule_text(rule: &Rule) -> String {
    let side = if rule.direction == Direction::Ingress {
        "from"
    } else {
        "to"
    };
    let mut fields = Vec::new();
    match &rule.peers {
        Peers::Unsaid => {}
        Peers::Endpoints(selectors) => {
            let items: Vec<_> = selectors.iter().map(selector_text).collect();
            fields.push(format!("{side}Endpoints: [{}]", items.join(", ")));
        }
        Peers::World => fields.push(format!(
            "{side}Endpoints: [{{matchLabels: {{\"reserved:world\": \"\"}}}}]"
        )),
        Peers::Cidrs(nets) => {
            let items: Vec<_> = nets.iter().map(|n| format!("\"{n}\"")).collect();
            fields.push(format!("{side}CIDR: [{}]", items.join(", ")));
        }
        Peers::CidrSet(cidr, except) => {
            fields.push(format!(
                "{side}CIDRSet: [{{cidr: \"{cidr}\", except: [{}]}}]",
                except.join(", ")
            ));
        }
    }
    if let Some(ports) = &rule.ports {
        let items: Vec<_> = ports
            .iter()
            .map(|port| {
                let mut text = format!("{{port: \"{}\"", port.first);
                if port.last != port.first {
                    write!(text, ", endPort: {}", port.last).unwrap();
                }
                if let Some(protocol) = port.protocol {
                    write!(
                        text,
                        ", protocol: {}",
                        format!("{protocol:?}").to_uppercase()
                    )
                    .unwrap();
                }
                text + "}"
            })
            .collect();
        fields.push(format!("toPorts: [{{ports: [{}]}}]", items.join(", ")));
    }
    if let Some((mode, _)) = rule.mode {
        fields.push(format!("authentication: {{mode: {mode}}}"));
    }
    format!("{{{}}}", fields.join(", "))
}

fn policy_text(number: usize, policy: &Policy) -> String {
    let list = |direction, deny| {
        let rules = policy
            .rules
            .iter()
            .filter(|r| r.direction == direction && r.deny == deny);
        rules.map(rule_text).collect::<Vec<_>>().join(",\n    ")
    };
    let namespace = policy
        .namespace
        .map(|n| format!(", namespace: {n}"))
        .unwrap_or_default();
    format!(
        "---\napiVersion: handfast.io/v1alpha1\nkind: HandfastPolicy\nmetadata: {{name: p{number}{namespace}}}\nspec:\n  \
         endpointSelector: {}\n  ingress: [{}]\n  ingressDeny: [{}]\n  egress: [{}]\n  egressDeny: [{}]\n",
        selector_text(&policy.subject),
        list(Direction::Ingress, false),
        list(Direction::Ingress, true),
        list(Direction::Egress, false),
        list(Direction::Egress, true),
    )
}

fn read(policies: &[Policy]) -> PolicySet {
    let text: String = policies
        .iter()
        .enumerate()
        .map(|(n, policy)| policy_text(n, policy))
        .collect();
    PolicySet::read(vec![Source {
        name: "p.yaml".to_owned(),
        text: text.clone(),
    }])
    .unwrap_or_else(|errors| panic!("{errors:#?}\n{text}"))
}

// --- random ones ---

fn is() -> impl Strategy<Value = Is> {
    prop_oneof![
        3 => subsequence(VALUES.to_vec(), 1..=2).prop_map(Is::In),
        1 => subsequence(VALUES.to_vec(), 1..=2).prop_map(Is::NotIn),
        1 => Just(Is::Exists),
        1 => Just(Is::Absent),
    ]
}

fn selector(keys: &'static [&'static str]) -> impl Strategy<Value = Selector> {
    proptest::collection::btree_map(select(keys), is(), 0..=2).prop_map(|m| m.into_iter().collect())
}

fn peers() -> impl Strategy<Value = Peers> {
    prop_oneof![
        2 => Just(Peers::Unsaid),
        4 => proptest::collection::vec(selector(&KEYS), 0..=2).prop_map(Peers::Endpoints),
        1 => Just(Peers::World),
        1 => subsequence(NETS.to_vec(), 1..=2).prop_map(Peers::Cidrs),
        1 => subsequence(NETS[2..4].to_vec(), 0..=2).prop_map(|except| Peers::CidrSet(NETS[1], except)),
    ]
}

/// Ports close together, so that ranges overlap.
fn port() -> impl Strategy<Value = Port> {
    let range = prop_oneof![
        1 => Just((0, 0)),
        3 => (1_u16..12).prop_map(|p| (p, p)),
        3 => (1_u16..12, 1_u16..6).prop_map(|(p, n)| (p, p + n)),
        1 => Just((65_530, 65_535)),
    ];
    let protocol = select(vec![
        None,
        Some(Protocol::Tcp),
        Some(Protocol::Udp),
        Some(Protocol::Sctp),
    ]);
    (range, protocol).prop_map(|((first, last), protocol)| Port {
        first,
        last,
        protocol,
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    (
        select(vec![Direction::Ingress, Direction::Egress]),
        prop::bool::weighted(0.15),
        peers(),
        prop::option::weighted(0.6, proptest::collection::vec(port(), 1..=3)),
        prop::option::of(select(MODES.to_vec())),
    )
        .prop_map(|(direction, deny, peers, ports, mode)| {
            let names = ports.is_some() || !matches!(peers, Peers::Unsaid);
            Rule {
                direction,
                deny,
                peers,
                ports,
                mode: mode.filter(|_| names && !deny),
            }
        })
}

fn policy() -> impl Strategy<Value = Policy> {
    let namespace = prop::option::weighted(0.3, select(VALUES.to_vec()));
    (
        namespace,
        selector(&KEYS[..2]),
        proptest::collection::vec(rule(), 1..=5),
    )
        .prop_map(|(namespace, subject, rules)| Policy {
            namespace,
            subject,
            rules,
        })
}

fn workload() -> impl Strategy<Value = Workload> {
    let label = prop::option::weighted(0.8, select(VALUES.to_vec()));
    [label.clone(), label.clone(), label].prop_map(|values| {
        let labels = KEYS.iter().zip(values);
        let labels = labels.filter_map(|(k, v)| Some(((*k).to_owned(), v?.to_owned())));
        let spiffe_id = SpiffeId::new("spiffe://example.org/w").unwrap();
        Workload {
            spiffe_id,
            labels: labels.collect(),
        }
    })
}

fn remote() -> impl Strategy<Value = Remote> {
    prop_oneof![
        6 => workload().prop_map(Remote::Workload),
        2 => select(NETS.to_vec()).prop_map(|net| Remote::Cidr(net.parse().unwrap())),
        1 => select(vec![Remote::Host, Remote::World, Remote::Unknown]),
    ]
}

const PROTOCOLS: [Protocol; 4] = [Protocol::Any, Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_entries_say_what_the_documents_mean(
        policies in proptest::collection::vec(policy(), 0..=4),
        local in workload(),
        remotes in proptest::collection::vec(remote(), 3),
    ) {
        let set = read(&policies);
        for remote in &remotes {
            let entries = set.entries(&local, remote);
            for direction in [Direction::Ingress, Direction::Egress] {
                for protocol in PROTOCOLS {
                    for port in (0..20).chain([65_529, 65_530, 65_535]) {
                        let found = match lookup(&entries, direction, protocol, port) {
                            _ if !set.selected(&local, direction) => Meaning::NotSelected,
                            Some(entry) if entry.verdict == Verdict::Allow => Meaning::Allowed(entry.auth),
                            _ => Meaning::Denied,
                        };
                        let meant = interpret(&policies, &local, remote, direction, protocol, port);
                        prop_assert_eq!(found, meant, "{:?} {:?} {}: {:#?}", direction, protocol, port, entries);
                    }
                }
            }
        }
    }

    #[test]
    fn entries_of_a_protocol_never_overlap_and_name_a_rule_of_theirs(
        policies in proptest::collection::vec(policy(), 1..=4),
        local in workload(),
        remote in remote(),
    ) {
        let set = read(&policies);
        let entries = set.entries(&local, &remote);
        for (n, entry) in entries.iter().enumerate() {
            let rule = set.rule(entry.rule).expect("a rule of the set");
            prop_assert!(rule.field.starts_with(&format!("spec.{}", entry.direction)), "{}", rule.field);
            for other in &entries[n + 1..] {
                let same = entry.direction == other.direction && entry.protocol == other.protocol;
                prop_assert!(!same || !entry.ports.overlaps(other.ports), "{:?} {:?}", entry, other);
            }
        }
        for direction in [Direction::Ingress, Direction::Egress] {
            let any = entries.iter().any(|entry| entry.direction == direction);
            prop_assert!(!any || set.selected(&local, direction));
        }
    }

    #[test]
    fn a_longest_match_among_the_named_prefixes_is_enough_to_judge_an_address(
        policies in proptest::collection::vec(policy(), 1..=4),
        local in workload(),
        address in select(vec!["10.1.2.3", "10.1.9.9", "10.9.9.9", "192.0.2.1", "2001:db8::1", "2001:db9::1"]),
    ) {
        let set = read(&policies);
        let address: IpNet = IpNet::from(address.parse::<std::net::IpAddr>().unwrap());
        let longest = set.cidrs().into_iter().filter(|net| net.contains(&address)).max_by_key(IpNet::prefix_len);
        let remote = longest.map_or(Remote::World, Remote::Cidr);
        prop_assert_eq!(set.entries(&local, &remote), set.entries(&local, &Remote::Cidr(address)));
    }

    #[test]
    fn pairing_asks_both_ends_and_both_ends_agree(
        policies in proptest::collection::vec(policy(), 0..=4),
        a in workload(),
        b in workload(),
    ) {
        let set = read(&policies);
        let open = |local: &Workload, remote: &Workload, direction, protocol, port| {
            let remote = Remote::Workload(remote.clone());
            interpret(&policies, local, &remote, direction, protocol, port) != Meaning::Denied
        };
        let flows = |from: &Workload, to: &Workload| {
            PROTOCOLS.iter().any(|protocol| {
                (0..20).chain([20_000, 65_530, 65_535]).any(|port| {
                    open(from, to, Direction::Egress, *protocol, port)
                        && open(to, from, Direction::Ingress, *protocol, port)
                })
            })
        };
        let pairing = set.pairing(&a, &b);
        prop_assert_eq!(pairing.wanted, flows(&a, &b) || flows(&b, &a));
        prop_assert_eq!(pairing, set.pairing(&b, &a));
    }

    #[test]
    fn prefixes_cover_exactly_the_ports_and_are_as_few_as_can_be(a: u16, b: u16) {
        let ports = Ports::new(a.min(b), a.max(b)).unwrap();
        let prefixes = ports_to_prefixes(ports);
        let mut next = u32::from(ports.first());
        for prefix in &prefixes {
            let size = 1_u32 << (16 - prefix.length);
            prop_assert_eq!(u32::from(prefix.port), next, "no gap and no overlap");
            prop_assert_eq!(u32::from(prefix.port) % size, 0, "aligned");
            next += size;
        }
        prop_assert_eq!(next, u32::from(ports.last()) + 1);
        // Two neighbours of one size that begin aligned would be one prefix.
        for pair in prefixes.windows(2) {
            let size = 1_u32 << (16 - pair[0].length);
            let halves = pair[0].length == pair[1].length && u32::from(pair[0].port) % (2 * size) == 0;
            prop_assert!(!halves, "{:?}", pair);
        }
    }

    #[test]
    fn hostile_text_is_never_a_panic(text in "\\PC{0,200}") {
        let _ = PolicySet::read(vec![Source { name: "p".to_owned(), text }]);
    }

    #[test]
    fn yaml_like_garbage_is_never_a_panic(
        pieces in proptest::collection::vec(select(vec![
            "apiVersion: cilium.io/v2\n", "kind: CiliumNetworkPolicy\n", "metadata:\n", "  name: a\n", "spec:\n",
            "  endpointSelector:", " {}\n", "  ingress:\n", "  - ", "fromEndpoints:\n", "toPorts: ", "[", "]", "{", "}",
            "ports: ", "port: ", "\"80\"", "'", "\"", "&a ", "*a ", "!!str ", "!", "|\n", ">-\n", "---\n", "...\n", "%YAML 1.2\n",
            "? ", ": ", ", ", "- ", "#", "\t", "\n", "\r\n", "  ", "\u{feff}", "\u{85}", "\u{2028}", "\0", "~", "null", "<<: ",
            "authentication: ", "mode: ", "required\n", "matchLabels: ", "endPort: ", "99999999999999999999", "-0", "0x10",
            "fromCIDR: ", "1.2.3.4/5", "\\x", "\\u", "\\U00110000", "é",
        ]), 0..60),
    ) {
        let _ = PolicySet::read(vec![Source { name: "p".to_owned(), text: pieces.concat() }]);
    }

    #[test]
    fn a_good_document_with_a_wound_is_never_a_panic(
        policy in policy(), at in any::<prop::sample::Index>(), wound in "\\PC{0,4}", cut in 0_usize..20,
    ) {
        let text = policy_text(0, &policy);
        let chars: Vec<char> = text.chars().collect();
        let at = at.index(chars.len());
        let wounded: String = chars[..at].iter().copied().chain(wound.chars())
            .chain(chars.iter().skip(at + cut).copied()).collect();
        let _ = PolicySet::read(vec![Source { name: "p".to_owned(), text: wounded }]);
    }
}

#[test]
fn hostile_shapes_end_soon() {
    let began = std::time::Instant::now();
    for text in [
        "{".repeat(1 << 20),
        "[".repeat(1 << 20),
        "- ".repeat(1 << 19),
        "? ".repeat(1 << 19),
        "a: ".repeat(300_000),
        "\"".repeat(1 << 20),
        "a".repeat(1 << 20),
        "[a, ".repeat(20) + &"a, ".repeat(300_000),
        "a: |\n".to_owned() + &" x\n".repeat(300_000),
        "---\n".repeat(200_000),
        "a: &a [b]\n".repeat(100_000),
        (0..100_000).map(|n| format!("{n}: \n")).collect(),
        "'\n".repeat(1 << 19),
        "#".repeat(1 << 20),
        " ".repeat(1 << 20),
        "\t".repeat(1 << 20),
        "\n".repeat(1 << 20),
        "!a ".repeat(300_000),
        "&a ".repeat(300_000),
        "{a: ".repeat(30) + &"[], ".repeat(200_000),
        "a:\n".to_owned() + &"- b\n".repeat(200_000),
    ] {
        let start = std::time::Instant::now();
        let head: String = text.chars().take(20).collect();
        let _ = PolicySet::read(vec![Source {
            name: "p".to_owned(),
            text,
        }]);
        eprintln!("{head:?}: {:?}", start.elapsed());
    }
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
}
