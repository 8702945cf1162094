//! The table as a whole: policies, endpoints and identities in, changes of the map out.

use handfast_bpf::{Auth, Direction, IdentityNumber, Ports};

use super::*;

fn workload(path: &str, label: &str) -> Workload {
    Workload {
        spiffe_id: format!("spiffe://example.org/{path}").parse().unwrap(),
        labels: label
            .split_once('=')
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into_iter()
            .collect(),
    }
}

const NGINX: &str = r"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: nginx}
spec:
  endpointSelector: {matchLabels: {run: nginx}}
  ingress:
    - fromEndpoints: [{matchLabels: {client: good}}]
      toPorts: [{ports: [{port: '80', protocol: TCP}]}]
      authentication: {mode: required}
";

fn nginx() -> Arc<PolicySet> {
    let source = handfast_policies::Source {
        name: "nginx".into(),
        text: NGINX.into(),
    };
    Arc::new(PolicySet::read(vec![source]).unwrap())
}

#[test]
fn without_a_policy_an_endpoint_allows_everybody_both_ways() {
    let mut table = PolicyTable::new(DefaultAuthentication::Background);
    let changes = table.set_endpoint(1, Some(workload("web", "run=nginx")));
    let inside = |change: &&Change| matches!(change, Change::Set(_, value) if value.encryption);
    assert_eq!(changes.iter().filter(inside).count(), 2);
    assert!(changes.iter().filter(inside).all(|change| matches!(
        change,
        Change::Set(key, value)
            if key.packets.identity == IdentityNumber::ANY && value.auth == Auth::Disabled
    )));
}

#[test]
fn what_lies_outside_the_mesh_is_asked_for_no_tunnel() {
    let mut table = PolicyTable::new(DefaultAuthentication::Required);
    table.set_endpoint(1, Some(workload("web", "run=nginx")));
    for number in [IdentityNumber::HOST, IdentityNumber::WORLD] {
        let entries: Vec<_> = table
            .installed()
            .filter(|(key, _)| key.packets.identity == number)
            .collect();
        assert_eq!(entries.len(), 2, "both directions");
        assert!(
            entries
                .iter()
                .all(|(_, value)| !value.encryption && value.auth == Auth::Disabled)
        );
    }
}

/// What comes in clear while a node is joining comes from nobody known: there is no tunnel that could be asked for.
#[test]
fn while_a_node_joins_a_tunnel_is_asked_for_only_by_a_rule_that_names_it() {
    let rules = |rule: &str| {
        let text = format!(
            "apiVersion: handfast.io/v1alpha1\nkind: HandfastPolicy\nmetadata: {{name: p}}\nspec:\n  endpointSelector: \
             {{}}\n  ingress:\n  - {rule}\n"
        );
        let name = "p".into();
        Arc::new(PolicySet::read(vec![handfast_policies::Source { name, text }]).unwrap())
    };
    let unknown = |table: &PolicyTable, direction: Direction| -> Vec<_> {
        let found = table.installed().filter(|(key, _)| {
            (key.packets.identity, key.packets.direction) == (IdentityNumber::UNKNOWN, direction)
        });
        found
            .map(|(_, value)| (value.verdict, value.encryption, value.auth))
            .collect()
    };
    let allow = handfast_bpf::Verdict::Allow;
    let mut table = PolicyTable::new(DefaultAuthentication::Background);
    table.set_endpoint(2, None);
    table.set_endpoint(1, Some(workload("web", "run=nginx")));
    for direction in [Direction::Ingress, Direction::Egress] {
        let open = [(allow, false, Auth::Disabled); 2];
        assert_eq!(
            unknown(&table, direction),
            open,
            "the endpoint, and one that nobody knows yet"
        );
    }
    table.set_endpoint(2, Some(workload("db", "run=db")));
    for (rule, expected) in [
        (
            "toPorts: [{ports: [{port: 80}]}]",
            vec![(allow, false, Auth::Disabled)],
        ),
        (
            "{toPorts: [{ports: [{port: 80}]}], encryption: {mode: required}}",
            vec![(allow, true, Auth::Disabled)],
        ),
        (
            "{toPorts: [{ports: [{port: 80}]}], authentication: {mode: required}}",
            vec![(allow, false, Auth::Required)],
        ),
        // Labels are those of somebody known.
        ("fromEndpoints: [{matchLabels: {run: db}}]", vec![]),
    ] {
        table.replace_set(rules(rule));
        table.remove_endpoint(2);
        let mut found = unknown(&table, Direction::Ingress);
        found.dedup();
        assert_eq!(found, expected, "{rule}");
    }
    let mut table = PolicyTable::new(DefaultAuthentication::Required);
    table.set_endpoint(1, Some(workload("web", "run=nginx")));
    let proven = [(allow, false, Auth::Required)];
    assert_eq!(unknown(&table, Direction::Ingress), proven);
}

#[test]
fn an_exempt_port_is_open_to_everybody_whatever_a_policy_closes_or_denies() {
    let denied = NGINX.replace(
        "      authentication: {mode: required}\n",
        "      authentication: {mode: required}\n  ingressDeny: [{fromEntities: [all]}]\n",
    );
    let source = handfast_policies::Source {
        name: "denied".into(),
        text: denied,
    };
    let mut table = PolicyTable::new(DefaultAuthentication::Required);
    table.replace_set(Arc::new(PolicySet::read(vec![source]).unwrap()));
    table.set_identity(300, workload("good", "client=good"));
    table.set_exempt(1, vec!["tcp/22".parse().unwrap()]);
    table.set_endpoint(1, Some(workload("web", "run=nginx")));
    let ssh = Ports::Prefix {
        protocol: 6,
        port: 22,
        bits: 16,
    };
    for identity in [IdentityNumber::ANY, IdentityNumber(300)] {
        let found: Vec<_> = table
            .installed()
            .filter(|(key, _)| {
                let packets = key.packets;
                (packets.identity, packets.direction) == (identity, Direction::Ingress)
            })
            .collect();
        let open = |ports: Ports| {
            let of = found.iter().filter(|(key, _)| key.packets.ports == ports);
            of.map(|(_, value)| (value.verdict, value.auth))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            open(ssh),
            [(handfast_bpf::Verdict::Allow, Auth::Disabled)],
            "{identity}"
        );
        let others = found.iter().filter(|(key, _)| key.packets.ports != ssh);
        let mut others = others.map(|(_, value)| value.verdict);
        assert!(others.all(|verdict| verdict == handfast_bpf::Verdict::Deny));
    }
    // It goes with its endpoint: the next one of that number has none.
    table.remove_endpoint(1);
    table.set_endpoint(1, Some(workload("web", "run=nginx")));
    assert!(table.installed().all(|(key, _)| key.packets.ports != ssh));
}

#[test]
fn what_the_kernel_refused_is_wanted_again() {
    let mut table = PolicyTable::new(DefaultAuthentication::Background);
    let changes = table.set_endpoint(1, Some(workload("web", "run=nginx")));
    assert!(table.refresh().is_empty());
    table.undo(&changes[0]);
    assert_eq!(table.refresh(), vec![changes[0]]);
    let gone = table.replace_set(nginx());
    let removal = gone
        .iter()
        .find(|change| matches!(change, Change::Remove(_)))
        .unwrap();
    table.undo(removal);
    assert_eq!(table.refresh(), vec![*removal]);
}

#[test]
fn a_policy_closes_the_selected_direction_and_opens_it_for_the_named_identity_only() {
    let mut table = PolicyTable::new(DefaultAuthentication::Background);
    table.set_endpoint(1, Some(workload("web", "run=nginx")));
    table.set_identity(256, workload("good", "client=good"));
    table.set_identity(257, workload("bad", "client=bad"));
    table.replace_set(nginx());
    let ingress: Vec<_> = table
        .installed()
        .filter(|(key, _)| key.packets.direction == Direction::Ingress)
        .collect();
    assert_eq!(ingress.len(), 1, "{ingress:?}");
    let (key, value) = ingress[0];
    assert_eq!(key.packets.identity, IdentityNumber(256));
    let http = Ports::Prefix {
        protocol: 6,
        port: 80,
        bits: 16,
    };
    assert_eq!(key.packets.ports, http);
    assert_eq!(value.auth, Auth::Required);
}

#[test]
fn an_identity_met_later_gets_its_entries_alone() {
    let mut table = PolicyTable::new(DefaultAuthentication::Background);
    table.replace_set(nginx());
    table.set_endpoint(1, Some(workload("web", "run=nginx")));
    let changes = table.set_identity(300, workload("good", "client=good"));
    assert_eq!(changes.len(), 1);
    assert!(
        table
            .set_identity(300, workload("good", "client=good"))
            .is_empty()
    );
}

#[test]
fn a_version_that_is_looked_at_in_part_leaves_nothing_for_a_whole_look() {
    let source = |name: &str, text: &str| handfast_policies::Source {
        name: name.into(),
        text: text.into(),
    };
    let deny = "{apiVersion: handfast.io/v1alpha1, kind: HandfastPolicy, metadata: {name: deny}, spec: \
                {endpointSelector: {}, enableDefaultDeny: {ingress: false}, ingressDeny: [{toPorts: [{ports: \
                [{port: 23}]}]}], egress: [{toCIDR: [192.0.2.0/24]}]}}";
    let versions = [
        vec![source("nginx", NGINX)],
        vec![source("nginx", NGINX), source("deny", deny)],
        vec![source("deny", deny)],
        vec![],
    ];
    let mut table = PolicyTable::new(DefaultAuthentication::Background);
    table.set_endpoint(1, Some(workload("web", "run=nginx")));
    table.set_endpoint(2, Some(workload("other", "run=other")));
    table.set_endpoint(3, None);
    table.set_identity(256, workload("good", "client=good"));
    for version in versions {
        let next = Arc::new(table.set().updated(version).unwrap());
        assert!(!table.replace_set(next).is_empty());
        assert_eq!(table.refresh(), vec![]);
    }
}

#[test]
fn the_same_policies_again_change_nothing() {
    let mut table = PolicyTable::new(DefaultAuthentication::Background);
    table.set_endpoint(1, Some(workload("web", "run=nginx")));
    table.set_identity(300, workload("good", "client=good"));
    assert!(!table.replace_set(nginx()).is_empty());
    assert!(table.replace_set(nginx()).is_empty());
}

#[test]
fn a_restarted_agent_that_knows_what_the_old_one_knew_changes_nothing() {
    let mut old = PolicyTable::new(DefaultAuthentication::Background);
    old.replace_set(nginx());
    old.set_endpoint(1, Some(workload("web", "run=nginx")));
    old.set_identity(300, workload("good", "client=good"));

    let mut new = PolicyTable::new(DefaultAuthentication::Background);
    new.adopt(
        old.installed().map(|(key, value)| (*key, *value)),
        old.cidrs(),
    );
    assert!(
        new.set_identity(300, workload("good", "client=good"))
            .is_empty()
    );
    assert!(new.replace_set(nginx()).is_empty());
    assert!(
        new.set_endpoint(1, Some(workload("web", "run=nginx")))
            .is_empty()
    );
}

#[test]
fn removals_come_last_so_that_no_allowed_flow_falls_between_two_writes() {
    let mut table = PolicyTable::new(DefaultAuthentication::Background);
    table.set_endpoint(1, Some(workload("web", "run=nginx")));
    table.set_identity(300, workload("good", "client=good"));
    let changes = table.replace_set(nginx());
    assert!(matches!(changes.first(), Some(Change::Set(..))));
    assert!(matches!(changes.last(), Some(Change::Remove(_))));
}

fn outside(prefixes: &str, selector: &str) -> Arc<PolicySet> {
    let text = format!(
        "{{apiVersion: handfast.io/v1alpha1, kind: HandfastPolicy, metadata: {{name: out}}, spec: {{endpointSelector: \
         {selector}, egress: [{{toCIDR: [{prefixes}]}}]}}}}"
    );
    let source = handfast_policies::Source {
        name: "out".into(),
        text,
    };
    Arc::new(PolicySet::read(vec![source]).unwrap())
}

#[test]
fn a_prefix_costs_entries_only_where_a_rule_names_it() {
    let mut table = PolicyTable::new(DefaultAuthentication::Background);
    table.set_endpoint(1, Some(workload("web", "run=nginx")));
    table.set_endpoint(2, Some(workload("other", "run=other")));
    table.set_endpoint(3, None);
    let before = table.len();
    let prefixes: Vec<String> = (0..200).map(|n| format!("198.51.{n}.0/24")).collect();
    let changes = table.replace_set(outside(&prefixes.join(", "), "{matchLabels: {run: nginx}}"));
    assert!(changes.iter().all(|change| change.endpoint() == 1));
    let named = changes.iter().filter(|change| {
        matches!(change, Change::Set(key, _) if key.packets.identity >= IdentityNumber::FIRST_CIDR)
    });
    // Ingress stays open, egress is allowed.
    assert_eq!(named.count(), 400);
    assert!(table.len() <= before + 400);
    assert_eq!(table.refresh(), vec![]);
}

#[test]
fn an_endpoint_with_too_many_entries_is_closed_alone_and_opens_when_they_are_fewer() {
    let mut table = PolicyTable::new(DefaultAuthentication::Background);
    table.set_endpoint(1, Some(workload("web", "run=nginx")));
    table.set_endpoint(2, Some(workload("other", "run=other")));
    let prefixes = |count: u32| {
        let all = (0..count).map(|n| format!("198.{}.{}.0/24", n / 250, n % 250));
        all.collect::<Vec<_>>().join(", ")
    };
    table.replace_set(outside(&prefixes(9_000), "{matchLabels: {run: nginx}}"));
    let left: BTreeSet<EndpointId> = table.installed().map(|(key, _)| key.endpoint).collect();
    assert_eq!(left, [2].into());
    let told = table.newly_overfull();
    assert!(told[0].contains("spiffe://example.org/web"), "{told:?}");
    // Whoever is met meanwhile does not open it.
    table.set_identity(300, workload("good", "client=good"));
    assert!(table.installed().all(|(key, _)| key.endpoint == 2));
    table.replace_set(outside(&prefixes(10), "{matchLabels: {run: nginx}}"));
    assert!(table.installed().any(|(key, _)| key.endpoint == 1));
    assert!(table.newly_overfull().is_empty());
}

#[test]
fn what_narrows_is_written_before_what_widens() {
    let mut table = PolicyTable::new(DefaultAuthentication::Background);
    table.replace_set(outside("198.51.100.0/24", "{}"));
    let changes = table.set_endpoint(1, Some(workload("web", "run=nginx")));
    let narrow: Vec<bool> = changes.iter().map(Change::narrows).collect();
    assert!(narrow[0]);
    assert!(narrow.is_sorted_by(|a, b| a >= b), "{narrow:?}");
}
