//! From the rules that match a remote to entries among which a longest-prefix lookup finds the right one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::document::{PortRange, Rule};
use crate::entry::Entry;
use crate::model::{Authentication, Direction, Encryption, Protocol, RuleRef, Verdict};
use crate::ports::Ports;

/// One range of one rule that matches.
#[derive(Clone, Copy)]
struct Claim<'a> {
    /// Earlier rules are named before later ones that say the same.
    order: usize,
    rule: &'a Rule,
    protocol: Protocol,
    ports: Ports,
}

/// How closely a rule speaks of a flow; smaller is closer.
type Width = (bool, u32, bool);

impl Claim<'_> {
    /// How closely it speaks of a flow, as Cilium's lookup ranks it: by ports first, then by peers.
    fn width(&self) -> Width {
        let ports = u32::from(self.ports.last()) - u32::from(self.ports.first());
        (
            self.protocol == Protocol::Any,
            ports,
            self.rule.is_for_anybody(),
        )
    }
}

/// The entries of one direction, from all rules that match the remote and their ports there.
pub(crate) fn entries<'a>(
    direction: Direction,
    ranges: impl IntoIterator<Item = (&'a Rule, PortRange)>,
) -> Vec<Entry> {
    let mut claims: BTreeMap<Protocol, Vec<Claim<'a>>> = BTreeMap::new();
    for (order, (rule, range)) in ranges.into_iter().enumerate() {
        let claim = Claim {
            order,
            rule,
            protocol: range.protocol,
            ports: range.ports,
        };
        claims.entry(range.protocol).or_default().push(claim);
    }
    let any = claims.remove(&Protocol::Any).unwrap_or_default();
    let mut everything = Covering::default();
    for claim in &any {
        everything.add(claim);
    }
    let mut entries: Vec<_> = everything
        .decide(direction, Protocol::Any, Ports::ANY)
        .into_iter()
        .collect();
    for (protocol, claims) in claims {
        entries.extend(split(direction, protocol, claims, everything.clone()));
    }
    entries
}

/// Cuts a protocol's ports where its claims begin and end, and decides each piece.
fn split(
    direction: Direction,
    protocol: Protocol,
    mut claims: Vec<Claim<'_>>,
    mut covering: Covering,
) -> Vec<Entry> {
    claims.sort_by_key(|claim| claim.ports.first());
    let pieces = pieces(&claims);
    let mut entries: Vec<Entry> = Vec::new();
    let mut ending = claims.clone();
    ending.sort_by_key(|claim| claim.ports.last());
    let mut ending = ending.iter().peekable();
    let mut coming = claims.iter().peekable();
    let mut here = 0_usize;
    for ports in pieces {
        while let Some(claim) = ending.next_if(|claim| claim.ports.last() < ports.first()) {
            covering.remove(claim);
            here -= 1;
        }
        while let Some(claim) = coming.next_if(|claim| claim.ports.first() <= ports.first()) {
            covering.add(claim);
            here += 1;
        }
        if here == 0 {
            continue;
        }
        let Some(entry) = covering.decide(direction, protocol, ports) else {
            continue;
        };
        match entries.last_mut() {
            Some(last) if continues(last, &entry) => {
                last.ports = Ports::new(last.ports.first(), ports.last()).unwrap_or(last.ports);
            }
            _ => entries.push(entry),
        }
    }
    entries
}

/// The ranges between all ends of all claims, ascending; each claim covers one whole or not at all.
fn pieces(claims: &[Claim<'_>]) -> Vec<Ports> {
    let mut starts: Vec<u32> = claims
        .iter()
        .flat_map(|claim| {
            [
                u32::from(claim.ports.first()),
                u32::from(claim.ports.last()) + 1,
            ]
        })
        .collect();
    starts.sort_unstable();
    starts.dedup();
    let piece = |(first, next): (&u32, &u32)| {
        Ports::new(u16::try_from(*first).ok()?, u16::try_from(next - 1).ok()?)
    };
    starts
        .iter()
        .zip(starts.iter().skip(1))
        .filter_map(piece)
        .collect()
}

/// Whether `next` says of the following ports what `last` says.
fn continues(last: &Entry, next: &Entry) -> bool {
    let adjacent = last.ports.last().checked_add(1) == Some(next.ports.first());
    adjacent
        && *last
            == Entry {
                ports: last.ports,
                ..next.clone()
            }
}

/// The claims that cover the ports at hand, by what is asked of them: so that ten thousand ranges inside each other
/// cost ten thousand steps, not the square of it.
#[derive(Clone, Default)]
struct Covering {
    all: BTreeSet<(Width, usize, RuleRef)>,
    denying: BTreeSet<(Width, usize, RuleRef)>,
    auth: BTreeSet<(Width, Reverse<Authentication>, usize, RuleRef)>,
    encryption: BTreeSet<(Width, Reverse<Encryption>, usize)>,
    max_age: BTreeSet<(Duration, usize)>,
}

impl Covering {
    fn add(&mut self, claim: &Claim<'_>) {
        let (width, order, rule) = (claim.width(), claim.order, claim.rule);
        self.all.insert((width, order, rule.number));
        if rule.verdict == Verdict::Deny {
            self.denying.insert((width, order, rule.number));
        }
        if let Some(auth) = rule.auth {
            self.auth.insert((width, Reverse(auth), order, rule.number));
        }
        if let Some(encryption) = rule.encryption {
            self.encryption.insert((width, Reverse(encryption), order));
        }
        if let Some(age) = rule.max_age {
            self.max_age.insert((age, order));
        }
    }

    fn remove(&mut self, claim: &Claim<'_>) {
        let (width, order, rule) = (claim.width(), claim.order, claim.rule);
        self.all.remove(&(width, order, rule.number));
        self.denying.remove(&(width, order, rule.number));
        if let Some(auth) = rule.auth {
            self.auth
                .remove(&(width, Reverse(auth), order, rule.number));
        }
        if let Some(encryption) = rule.encryption {
            self.encryption.remove(&(width, Reverse(encryption), order));
        }
        if let Some(age) = rule.max_age {
            self.max_age.remove(&(age, order));
        }
    }

    /// Deny wins. Of the rules that allow, the closest that says something decides; among equals the stronger, and
    /// among these the first.
    fn decide(&self, direction: Direction, protocol: Protocol, ports: Ports) -> Option<Entry> {
        let (_, _, closest) = *self.all.first()?;
        let entry = Entry {
            direction,
            protocol,
            ports,
            verdict: Verdict::Deny,
            auth: None,
            encryption: None,
            max_age: None,
            rule: closest,
        };
        if let Some((_, _, rule)) = self.denying.first() {
            return Some(Entry {
                rule: *rule,
                ..entry
            });
        }
        let asked = self.auth.first();
        Some(Entry {
            verdict: Verdict::Allow,
            auth: asked.map(|(_, Reverse(auth), ..)| *auth),
            encryption: self
                .encryption
                .first()
                .map(|(_, Reverse(encryption), _)| *encryption),
            max_age: self.max_age.first().map(|(age, _)| *age),
            rule: asked.map_or(closest, |(.., rule)| *rule),
            ..entry
        })
    }
}
