//! From the rules that match a remote to entries among which a longest-prefix lookup finds the right one.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::document::{PortRange, Rule};
use crate::entry::Entry;
use crate::model::{Direction, Protocol, RuleRef, Verdict};
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

impl Claim<'_> {
    /// How closely it speaks of a flow, as Cilium's lookup ranks it: by ports first, then by peers.
    ///
    /// Smaller is closer.
    fn width(&self) -> (bool, u32, bool) {
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
    let mut entries: Vec<_> = decide(direction, Protocol::Any, Ports::ANY, any.iter())
        .into_iter()
        .collect();
    for (protocol, claims) in claims {
        entries.extend(split(direction, protocol, claims, &any));
    }
    entries
}

/// Cuts a protocol's ports where its claims begin and end, and decides each piece.
fn split(
    direction: Direction,
    protocol: Protocol,
    mut claims: Vec<Claim<'_>>,
    any: &[Claim<'_>],
) -> Vec<Entry> {
    claims.sort_by_key(|claim| claim.ports.first());
    let pieces = pieces(&claims);
    let mut entries: Vec<Entry> = Vec::new();
    let mut coming = claims.into_iter().peekable();
    // Those that cover the piece at hand, so that a thousand rules for a thousand ports cost a thousand steps.
    let mut covering: Vec<Claim<'_>> = Vec::new();
    for ports in pieces {
        covering.retain(|claim| claim.ports.last() >= ports.first());
        while let Some(claim) = coming.next_if(|claim| claim.ports.first() <= ports.first()) {
            covering.push(claim);
        }
        if covering.is_empty() {
            continue;
        }
        let Some(entry) = decide(direction, protocol, ports, covering.iter().chain(any)) else {
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

/// Deny wins. Of the rules that allow, the closest that says something decides; among equals the stronger.
fn decide<'a, 'r: 'a>(
    direction: Direction,
    protocol: Protocol,
    ports: Ports,
    claims: impl Iterator<Item = &'a Claim<'r>> + Clone,
) -> Option<Entry> {
    let rule = closest(claims.clone())?;
    let entry = Entry {
        direction,
        protocol,
        ports,
        verdict: Verdict::Deny,
        auth: None,
        encryption: None,
        max_age: None,
        rule,
    };
    let denying = claims
        .clone()
        .filter(|claim| claim.rule.verdict == Verdict::Deny);
    if let Some(rule) = closest(denying) {
        return Some(Entry { rule, ..entry });
    }
    let asked = said(claims.clone(), |rule| rule.auth);
    Some(Entry {
        verdict: Verdict::Allow,
        auth: asked.map(|(auth, _)| auth),
        encryption: said(claims.clone(), |rule| rule.encryption).map(|(encryption, _)| encryption),
        max_age: claims.filter_map(|claim| claim.rule.max_age).min(),
        rule: asked.map_or(rule, |(_, rule)| rule),
        ..entry
    })
}

/// The rule that speaks most closely of the flow; the first of equals.
fn closest<'a, 'r: 'a>(claims: impl Iterator<Item = &'a Claim<'r>>) -> Option<RuleRef> {
    claims
        .min_by_key(|claim| (claim.width(), claim.order))
        .map(|claim| claim.rule.number)
}

/// What the closest rules that say anything say, and the first that says it.
fn said<'a, 'r: 'a, T: Ord + Copy>(
    claims: impl Iterator<Item = &'a Claim<'r>>,
    what: impl Fn(&Rule) -> Option<T>,
) -> Option<(T, RuleRef)> {
    claims
        .filter_map(|claim| {
            let said = what(claim.rule)?;
            let rank = (claim.width(), Reverse(said), claim.order);
            Some((rank, said, claim.rule.number))
        })
        .min_by_key(|(rank, ..)| *rank)
        .map(|(_, said, rule)| (said, rule))
}
