//! The table's rules, one test each; SVIDs here are made of nothing but their names and times.

use std::collections::BTreeMap;

use handfast_ca::model::Selector;
use zeroize::Zeroizing;

use super::*;
use crate::workload_api::X509Svid;

const NODE: &str = "spiffe://example.org/handfast/node/web1";

fn entry(id: &str, age: u64) -> KnownEntry {
    KnownEntry {
        id: id.into(),
        spiffe_id: format!("spiffe://example.org/{id}"),
        selectors: vec![("unix".into(), "uid:1".into())],
        parent_id: Some(NODE.into()),
        created_at_ms: age,
        labels: BTreeMap::new(),
        ..KnownEntry::default()
    }
}

fn elsewhere(id: &str) -> KnownEntry {
    KnownEntry {
        parent_id: None,
        ..entry(id, 5)
    }
}

fn held(entry: &KnownEntry, authority: &str, not_after: u64) -> Held {
    Held {
        svid: Arc::new(X509Svid {
            spiffe_id: entry.spiffe_id.parse().unwrap(),
            chain: vec![],
            key: Zeroizing::default(),
            hint: String::new(),
            not_after,
        }),
        entry: Arc::new(entry.clone()),
        authority: authority.into(),
        serial: "01".parse().unwrap(),
        renew_at: not_after / 2,
        changing_since: None,
        idle_since: 0,
    }
}

/// An SVID of an entry of that name, for tests of who keeps it.
pub(in super::super) fn held_for(id: &str) -> Held {
    held(&entry(id, 1), "ca", 1000)
}

fn table(entries: &[KnownEntry]) -> Table {
    let mut table = Table::default();
    table.set_entries(entries.iter().cloned().map(Arc::new), NODE, 0);
    table
}

fn due(table: &mut Table, now: u64) -> Vec<String> {
    let due = table.due(now, 100);
    due.iter().map(|entry| entry.id.clone()).collect()
}

fn have(table: &mut Table, entry: &KnownEntry, authority: &str, not_after: u64, now: u64) {
    let id = Arc::<str>::from(entry.id.as_str());
    assert!(table.accept(&id, held(entry, authority, not_after), now));
}

fn uid_1() -> Vec<Selector> {
    vec!["unix:uid:1".parse().unwrap()]
}

#[test]
fn the_oldest_entry_comes_first_whatever_order_the_ca_names_them_in() {
    let table = table(&[entry("young", 9), entry("b", 1), entry("a", 1)]);
    let matching = table.matching(&uid_1(), 0);
    assert_eq!(matching, ["a".into(), "b".into(), "young".into()]);
}

#[test]
fn entries_of_patterns_alone_are_found_too() {
    let mut pattern = entry("pattern", 1);
    pattern.selectors = vec![("cgroup".into(), "/system.slice/*".into())];
    let table = table(&[pattern]);
    let found: Vec<Selector> = vec!["cgroup:/system.slice/web.service".parse().unwrap()];
    assert_eq!(table.matching(&found, 0), ["pattern".into()]);
    assert!(table.matching(&uid_1(), 0).is_empty());
}

#[test]
fn an_entry_whose_time_is_over_matches_nobody_and_its_svid_goes() {
    let mut short = entry("short", 1);
    short.expires_at_ms = Some(50_000);
    let mut table = table(&[short.clone()]);
    have(&mut table, &short, "ca", 1000, 0);
    assert_eq!(table.matching(&uid_1(), 49).len(), 1);
    assert!(table.ended(49, 50));
    assert!(table.matching(&uid_1(), 50).is_empty());
    assert_eq!(table.tidy(50), ["short".into()]);
}

#[test]
fn what_names_this_node_is_kept_ready_and_the_rest_waits_for_a_workload() {
    let mut table = table(&[entry("own", 1), elsewhere("any")]);
    assert_eq!(due(&mut table, 0), ["own"]);
    table.serve(&["any".into()], true, 0);
    assert_eq!(due(&mut table, 0), ["any"]);
    assert!(due(&mut table, 1).is_empty(), "both are being asked for");
}

#[test]
fn workloads_that_wait_come_before_what_is_only_kept_ready() {
    let mut table = table(&[entry("a-ready", 1), entry("b-waiting", 2)]);
    table.serve(&["b-waiting".into()], true, 0);
    assert_eq!(due(&mut table, 0), ["b-waiting", "a-ready"]);
}

#[test]
fn an_svid_is_renewed_at_its_time_and_nothing_is_asked_twice() {
    let own = entry("own", 1);
    let mut table = table(std::slice::from_ref(&own));
    assert_eq!(due(&mut table, 0), ["own"]);
    have(&mut table, &own, "ca", 1000, 0);
    assert!(due(&mut table, 499).is_empty());
    assert_eq!(due(&mut table, 500), ["own"]);
    assert!(due(&mut table, 501).is_empty());
    // A call that never came back.
    assert_eq!(due(&mut table, 500 + LOST), ["own"]);
}

#[test]
fn an_svid_that_lasts_until_its_entry_ends_is_not_renewed_unless_the_entry_lasts_longer() {
    let mut short = entry("short", 1);
    short.expires_at_ms = Some(1_000_900);
    let mut table = table(std::slice::from_ref(&short));
    have(&mut table, &short, "ca", 1000, 0);
    assert!(due(&mut table, 600).is_empty());
    assert!(due(&mut table, 999).is_empty());
    short.expires_at_ms = Some(9_000_000);
    table.set_entries([Arc::new(short)], NODE, 999);
    assert_eq!(due(&mut table, 999), ["short"]);
}

#[test]
fn what_a_retired_authority_signed_is_due_at_once_and_again_after_a_pause_if_it_signs_all_the_same()
{
    let own = entry("own", 1);
    let mut table = table(std::slice::from_ref(&own));
    have(&mut table, &own, "old", 1000, 0);
    assert!(due(&mut table, 1).is_empty());
    table.retire(["old".to_owned()]);
    assert_eq!(due(&mut table, 1), ["own"]);
    have(&mut table, &own, "old", 1001, 1);
    assert!(due(&mut table, 2).is_empty());
    assert_eq!(due(&mut table, 1 + RETRY), ["own"]);
    have(&mut table, &own, "new", 1001, 2 + RETRY);
    assert!(due(&mut table, 3 + RETRY).is_empty());
    assert_eq!(table.authorities(), ["new".into()].into());
}

#[test]
fn an_idle_svid_does_not_keep_a_retired_authority_in_use() {
    let any = elsewhere("any");
    let mut table = table(std::slice::from_ref(&any));
    have(&mut table, &any, "old", 1000, 0);
    assert!(table.tidy(1).is_empty(), "it may be needed again soon");
    table.retire(["old".to_owned()]);
    assert_eq!(table.tidy(2), ["any".into()]);
    assert!(table.authorities().is_empty());
}

#[test]
fn a_changed_entry_serves_the_old_identity_only_until_the_new_one_is_signed_or_a_moment_has_passed()
{
    let before = entry("e", 1);
    let mut table = table(std::slice::from_ref(&before));
    have(&mut table, &before, "ca", 1000, 0);
    let mut after = before.clone();
    after.spiffe_id = "spiffe://example.org/renamed".into();
    table.set_entries([Arc::new(after.clone())], NODE, 10);
    assert_eq!(due(&mut table, 10), ["e"]);
    assert!(matches!(table.standing("e", 10), Standing::Held(_)));
    assert!(table.changed_out(9 + CHANGING, 10 + CHANGING));
    assert!(matches!(
        table.standing("e", 10 + CHANGING),
        Standing::Pending
    ));
    // An answer for what the entry was does not count.
    assert!(!table.accept(&"e".into(), held(&before, "ca", 1000), 11));
    have(&mut table, &after, "ca", 1000, 11);
    assert!(matches!(table.standing("e", 600), Standing::Held(_)));
}

#[test]
fn an_entry_that_the_ca_refuses_is_asked_for_again_at_once_when_it_changes() {
    let mut own = entry("own", 1);
    let mut table = table(std::slice::from_ref(&own));
    assert_eq!(due(&mut table, 0), ["own"]);
    table.refuse(&"own".into(), "revoked".into(), 0);
    assert!(matches!(table.standing("own", 0), Standing::Refused));
    assert!(due(&mut table, 1).is_empty());
    own.dns_names = vec!["web.example.org".into()];
    table.set_entries([Arc::new(own)], NODE, 1);
    assert!(matches!(table.standing("own", 1), Standing::Pending));
    assert_eq!(due(&mut table, 1), ["own"]);
}

#[test]
fn what_waited_for_a_ca_that_was_away_is_due_when_it_is_reached() {
    let mut table = table(&[entry("own", 1)]);
    assert_eq!(due(&mut table, 0), ["own"]);
    table.not_issued(&["own".into()], 0);
    assert!(due(&mut table, 1).is_empty());
    table.reached();
    assert_eq!(due(&mut table, 1), ["own"]);
}

#[test]
fn a_clock_that_was_ahead_and_is_set_right_keeps_nobody_waiting() {
    let (own, refused) = (entry("own", 1), entry("refused", 2));
    let mut table = table(&[own.clone(), refused]);
    assert_eq!(due(&mut table, 10_800).len(), 2);
    table.not_issued(&["own".into()], 10_800);
    table.refuse(&"refused".into(), "revoked".into(), 10_800);
    assert!(due(&mut table, 10).is_empty(), "by the other clock");
    table.set_back(10);
    assert_eq!(due(&mut table, 10), ["own", "refused"]);

    // An identity that its entry no longer names is not served until then either.
    have(&mut table, &own, "ca", 20_000, 10);
    let renamed = KnownEntry {
        spiffe_id: "spiffe://example.org/renamed".into(),
        ..own
    };
    table.set_entries([Arc::new(renamed)], NODE, 10_800);
    table.set_back(20);
    let standing = table.standing("own", 20 + CHANGING);
    assert!(matches!(standing, Standing::Pending));
}

#[test]
fn an_svid_goes_with_its_entry() {
    let own = entry("own", 1);
    let mut table = table(std::slice::from_ref(&own));
    have(&mut table, &own, "ca", 1000, 0);
    assert_eq!(table.set_entries([], NODE, 1), ["own".into()]);
    assert!(table.all().next().is_none());
}

#[test]
fn a_kept_svid_is_adopted_only_if_its_entry_would_be_signed_the_same_today() {
    let own = entry("own", 1);
    let mut other = own.clone();
    other.ttl = Some(60);
    let mut table = table(std::slice::from_ref(&own));
    assert!(!table.adopt("gone", held(&entry("gone", 1), "ca", 1000), 0));
    assert!(!table.adopt("own", held(&other, "ca", 1000), 0));
    assert!(!table.adopt("own", held(&own, "ca", 1000), 1000), "expired");
    assert!(table.adopt("own", held(&own, "ca", 1000), 10));
    assert!(matches!(table.standing("own", 10), Standing::Held(_)));
}
