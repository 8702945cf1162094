//! Handshakes that are under way: strangers take part in them as long as they like to be slow, so they have room of
//! their own, from which nobody else is kept. When it is full, whoever has the most of it gives some back.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// Handshakes at once: as many agents as come back together when a CA has restarted.
const MAX: usize = 1024;
/// Of one source, behind which many agents may stand.
const MAX_EACH: usize = MAX / 2;
/// What a handshake gets even when room is short.
const GRACE: Duration = Duration::from_secs(1);

/// All that are under way.
#[derive(Debug, Clone, Default)]
pub(super) struct Handshakes(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// By age.
    open: BTreeMap<u64, One>,
    each: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct One {
    source: IpAddr,
    since: Instant,
    /// Dropped to end it.
    _end: oneshot::Sender<()>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Handshake {
    table: Arc<Mutex<Table>>,
    number: u64,
    end: oneshot::Receiver<()>,
}

impl Handshakes {
    /// Room for one more of a source; none if it has enough, or all others have a better right to theirs.
    pub(super) fn begin(&self, source: IpAddr, now: Instant) -> Option<Handshake> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = table.each.get(&source).copied().unwrap_or_default();
        if own >= MAX_EACH {
            return None;
        }
        if table.open.len() >= MAX {
            let number = table.last_in_line(own, now)?;
            table.remove(number);
        }
        let (sender, end) = oneshot::channel();
        table.next += 1;
        let number = table.next;
        let one = One {
            source,
            since: now,
            _end: sender,
        };
        table.open.insert(number, one);
        *table.each.entry(source).or_default() += 1;
        Some(Handshake {
            table: Arc::clone(&self.0),
            number,
            end,
        })
    }
}

impl Table {
    /// The oldest of the source that has the most, if that is more than a source with `own` of them would have, or
    /// if it has had its time.
    fn last_in_line(&self, own: usize, now: Instant) -> Option<u64> {
        let most = self.each.values().copied().max()?;
        let (number, one) = self
            .open
            .iter()
            .find(|(_, one)| self.each.get(&one.source) == Some(&most))?;
        let greedy = most > own + 1;
        (greedy || now.duration_since(one.since) >= GRACE).then_some(*number)
    }

    fn remove(&mut self, number: u64) {
        let Some(one) = self.open.remove(&number) else {
            return;
        };
        if let Some(count) = self.each.get_mut(&one.source) {
            *count -= 1;
            if *count == 0 {
                self.each.remove(&one.source);
            }
        }
    }
}

impl Handshake {
    /// Does it, unless it is ended to make room.
    pub(super) async fn hold<T>(&mut self, shaking: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = shaking => Some(done),
            _ = &mut self.end => None,
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u16) -> IpAddr {
        let [high, low] = number.to_be_bytes();
        IpAddr::from([10, 0, high, low])
    }

    fn is_over(handshake: &mut Handshake) -> bool {
        handshake.end.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn who_has_the_most_makes_room_for_others_and_gets_none_beyond_half() {
        let (all, now) = (Handshakes::default(), Instant::now());
        let begin = |from: u16, count: usize| -> Vec<Handshake> {
            let some = std::iter::repeat_with(|| all.begin(source(from), now));
            some.take(count).flatten().collect()
        };
        let mut greedy = begin(1, MAX);
        assert_eq!(greedy.len(), MAX_EACH);
        let mut other = begin(2, MAX);
        assert_eq!(other.len(), MAX_EACH, "now all places are taken");
        let mut third = begin(3, 100);
        assert_eq!(third.len(), 100);
        let ended = |some: &mut Vec<Handshake>| {
            some.iter_mut()
                .filter_map(|one| is_over(one).then_some(()))
                .count()
        };
        assert_eq!((ended(&mut greedy), ended(&mut other)), (50, 50));
        assert_eq!(ended(&mut third), 0);
        drop((greedy, other, third));
        let table = all.0.lock().unwrap();
        assert!(
            table.open.is_empty() && table.each.is_empty(),
            "nothing is left"
        );
    }

    #[test]
    fn among_equals_who_has_had_a_second_goes_and_before_that_nobody() {
        let (all, start) = (Handshakes::default(), Instant::now());
        let mut open: Vec<Handshake> = (0..MAX as u16)
            .map(|from| all.begin(source(from), start).unwrap())
            .collect();
        let late = source(60_000);
        assert!(all.begin(late, start).is_none());
        assert!(all.begin(late, start + GRACE).is_some());
        assert!(is_over(&mut open[0]) && !is_over(&mut open[1]));
    }
}
