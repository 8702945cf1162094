//! Random policies and random flows: the compiled entries against an interpreter that is slow and obvious.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use handfast_policies::{
    Direction, Entry, Matrix, PolicySet, Ports, Protocol, Remote, Ruling, Source, Update, Workload,
    lookup, ports_to_prefixes,
};
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use support::interpret::{Flow, Meaning, interpret};
use support::model::Document;
use support::random::{document, policy, remote, workload};
use support::text;

fn sources(documents: &[Document]) -> Vec<Source> {
    let source = |(number, document): (usize, &Document)| Source {
        name: format!("p{number}.yaml"),
        text: text::document(number, document),
    };
    documents.iter().enumerate().map(source).collect()
}

#[track_caller]
fn read(documents: &[Document]) -> PolicySet {
    let sources = sources(documents);
    PolicySet::read(sources.clone()).unwrap_or_else(|errors| panic!("{errors:#?}\n{sources:#?}"))
}

fn meaning(ruling: &Ruling) -> Meaning {
    match ruling {
        Ruling::Open => Meaning::Open,
        Ruling::Rule(entry) if ruling.is_allowed() => Meaning::Allowed(entry.auth),
        Ruling::Rule(_) | Ruling::Closed => Meaning::Denied,
    }
}

/// As the gates see it: a map of entries, and what happens where it has none.
fn found(set: &PolicySet, entries: &[Entry], flow: &Flow<'_>) -> Meaning {
    match lookup(entries, flow.direction, flow.protocol, flow.port) {
        Some(entry) => meaning(&Ruling::Rule(entry.clone())),
        None if set.selected(flow.local, flow.direction) => Meaning::Denied,
        None => Meaning::Open,
    }
}

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

fn ports() -> impl Iterator<Item = u16> {
    (0..20).chain([128, 129, 255, 65_529, 65_530, 65_535])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_entries_say_what_the_documents_mean(
        documents in vec(document(), 0..=4),
        local in workload(),
        remotes in vec(remote(), 3),
    ) {
        let set = read(&documents);
        let policy = set.of_workload(&local);
        for remote in &remotes {
            let entries = set.entries(&local, remote);
            for direction in DIRECTIONS {
                for protocol in Protocol::ALL {
                    for port in ports() {
                        let flow = Flow { local: &local, remote, direction, protocol, port };
                        let meant = interpret(&documents, &flow);
                        let found = found(&set, &entries, &flow);
                        prop_assert_eq!(&found, &meant, "{:?} {:?} {}: {:#?}", direction, protocol, port, entries);
                    }
                    let ruling = policy.ruling(remote, direction, protocol, 7);
                    let flow = Flow { local: &local, remote, direction, protocol, port: 7 };
                    prop_assert_eq!(meaning(&ruling), interpret(&documents, &flow));
                }
            }
        }
    }

    #[test]
    fn entries_of_a_protocol_never_overlap_and_name_a_rule_of_theirs(
        documents in vec(document(), 1..=4),
        local in workload(),
        remote in remote(),
    ) {
        let set = read(&documents);
        let entries = set.entries(&local, &remote);
        for (n, entry) in entries.iter().enumerate() {
            let rule = set.rule(entry.rule).expect("a rule of the set");
            prop_assert_eq!(rule.direction, entry.direction);
            prop_assert_eq!(rule.verdict, entry.verdict);
            for other in &entries[n + 1..] {
                let same = entry.direction == other.direction && entry.protocol == other.protocol;
                prop_assert!(!same || !entry.ports.overlaps(other.ports), "{:?} {:?}", entry, other);
            }
        }
    }

    #[test]
    fn a_longest_match_among_the_named_prefixes_is_enough_to_judge_an_address(
        documents in vec(document(), 1..=4),
        local in workload(),
        address in select(vec!["10.1.2.3", "10.1.9.9", "10.9.9.9", "192.0.2.1", "2001:db8::1", "2001:db9::1"]),
    ) {
        let set = read(&documents);
        let address: std::net::IpAddr = address.parse().unwrap();
        let itself = Remote::Cidr(IpNet::from(address));
        prop_assert_eq!(set.entries(&local, &set.outside(address)), set.entries(&local, &itself));
    }

    #[test]
    fn pairing_asks_both_ends_and_both_ends_agree(
        documents in vec(document(), 0..=4),
        a in workload(),
        b in workload(),
    ) {
        let set = read(&documents);
        let open = |local: &Workload, remote: &Workload, direction, protocol, port| {
            let remote = &Remote::Workload(remote.clone());
            interpret(&documents, &Flow { local, remote, direction, protocol, port }) != Meaning::Denied
        };
        let flows = |from: &Workload, to: &Workload| {
            Protocol::ALL.iter().any(|protocol| {
                ports().chain([20_000]).any(|port| {
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
    fn an_updated_set_says_what_a_new_one_says_and_keeps_the_numbers_of_what_stays(
        before in vec(document(), 0..=4),
        after in vec(document(), 0..=2),
        keep in vec(any::<bool>(), 4),
        local in workload(),
        remotes in vec(remote(), 3),
    ) {
        // Some of the old documents stay in their place, the others go or change.
        let mixed: Vec<_> = before.iter().zip(&keep).enumerate()
            .filter_map(|(n, (old, keep))| match keep {
                true => Some(old.clone()),
                false => after.get(n).cloned(),
            })
            .collect();
        let old = read(&before);
        let new = old.updated(sources(&mixed)).unwrap();
        let fresh = read(&mixed);
        let changed = new.changed_since(&old);
        let place = |set: &PolicySet, entry: &Entry| {
            let rule = set.rule(entry.rule).unwrap();
            (rule.policy.clone(), rule.field.clone())
        };
        for remote in &remotes {
            let (then, now) = (old.entries(&local, remote), new.entries(&local, remote));
            let anew = fresh.entries(&local, remote);
            let says = |set: &PolicySet, entries: &[Entry]| -> Vec<_> {
                entries.iter().map(|e| (e.direction, e.protocol, e.ports, e.verdict, e.auth, place(set, e))).collect()
            };
            prop_assert_eq!(says(&new, &now), says(&fresh, &anew));
            for was in &then {
                for is in &now {
                    if is.rule == was.rule {
                        prop_assert_eq!(place(&old, was), place(&new, is));
                    }
                }
            }
            let concerned = changed.of_workload(&local).is_some_and(|changed| changed.concerns(remote));
            prop_assert!(concerned || then == now, "{:#?} {:#?}", then, now);
        }
        for direction in DIRECTIONS {
            prop_assert_eq!(new.selected(&local, direction), fresh.selected(&local, direction));
            if changed.of_workload(&local).is_none() {
                prop_assert_eq!(new.selected(&local, direction), old.selected(&local, direction));
            }
        }
        prop_assert_eq!(new.cidrs(), fresh.cidrs());
    }

    #[test]
    fn a_matrix_that_is_changed_piece_by_piece_says_what_one_made_at_once_says(
        first in vec(document(), 0..=3),
        second in vec(document(), 0..=3),
        locals in vec(workload(), 1..=3),
        remotes in vec(remote(), 1..=4),
        moved in remote(),
    ) {
        // What stands where entries are enforced.
        let mut enforced = BTreeMap::new();
        let mut closed = BTreeMap::new();
        let mut take = |update: Update<usize, usize>| {
            closed.extend(update.closed);
            enforced.extend(update.pairs.into_iter().map(|(local, remote, entries)| ((local, remote), entries)));
            (closed.clone(), enforced.clone())
        };
        let old = read(&first);
        let mut matrix = Matrix::default();
        take(matrix.replace(Arc::new(old.clone())));
        for (number, local) in locals.iter().enumerate() {
            take(matrix.set_local(number, local.clone()));
        }
        for (number, remote) in remotes.iter().enumerate() {
            take(matrix.set_remote(number, remote.clone()));
        }
        let new = Arc::new(old.updated(sources(&second)).unwrap());
        take(matrix.replace(Arc::clone(&new)));
        let (closed, enforced) = take(matrix.set_remote(0, moved.clone()));
        for (l, local) in locals.iter().enumerate() {
            for direction in DIRECTIONS {
                prop_assert_eq!(closed[&l].is(direction), new.selected(local, direction));
            }
            for (r, remote) in remotes.iter().enumerate() {
                let remote = if r == 0 { &moved } else { remote };
                prop_assert_eq!(&enforced[&(l, r)], &new.entries(local, remote), "{} {}", l, r);
            }
        }
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
        let text = text::document(0, &Document::Policy(policy));
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
