//! Whose turn it is: work that callers cause, a bounded amount at once, and of one group of callers only a part of
//! it, so that the others do not stand behind it in the queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Turns, in the order of asking within a group and among groups.
#[derive(Debug)]
pub(super) struct Turns {
    all: Arc<Semaphore>,
    of_group: usize,
    groups: Mutex<HashMap<Arc<str>, Weak<Semaphore>>>,
}

/// A turn; it ends when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _among_all: Option<OwnedSemaphorePermit>,
    _in_group: Option<OwnedSemaphorePermit>,
    /// As long as anybody has or awaits a turn, the group is remembered.
    _group: Arc<Semaphore>,
}

impl Turns {
    /// `all` at once, of which one group has at most `of_group`.
    pub(super) fn new(all: usize, of_group: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all)),
            of_group,
            groups: Mutex::default(),
        }
    }

    /// Waits for a turn. The group's own bound comes first: who waits there stands in nobody else's way.
    pub(super) async fn next(&self, group: &Arc<str>) -> Turn {
        let semaphore = self.group(group);
        // Neither is ever closed.
        let in_group = Arc::clone(&semaphore).acquire_owned().await.ok();
        let among_all = Arc::clone(&self.all).acquire_owned().await.ok();
        Turn {
            _among_all: among_all,
            _in_group: in_group,
            _group: semaphore,
        }
    }

    fn group(&self, group: &Arc<str>) -> Arc<Semaphore> {
        let mut groups = self.lock();
        if let Some(known) = groups.get(group).and_then(Weak::upgrade) {
            return known;
        }
        // There are no more than callers, whose number is bounded.
        groups.retain(|_, known| known.strong_count() > 0);
        let new = Arc::new(Semaphore::new(self.of_group));
        groups.insert(Arc::clone(group), Arc::downgrade(&new));
        new
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Weak<Semaphore>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_group_that_asks_for_much_does_not_keep_another_waiting() {
        let turns = Arc::new(Turns::new(4, 2));
        let (greedy, modest): (Arc<str>, Arc<str>) = ("greedy".into(), "modest".into());
        let mut waiting = Vec::new();
        for _ in 0..100 {
            let (turns, group) = (Arc::clone(&turns), Arc::clone(&greedy));
            waiting.push(tokio::spawn(async move {
                let _turn = turns.next(&group).await;
                std::future::pending::<()>().await;
            }));
        }
        tokio::task::yield_now().await;
        let one = turns.next(&modest);
        let one = tokio::time::timeout(Duration::from_secs(5), one).await;
        let two = turns.next(&modest);
        let two = tokio::time::timeout(Duration::from_secs(5), two).await;
        assert!(one.is_ok() && two.is_ok());
        let third = turns.next(&modest);
        let third = tokio::time::timeout(Duration::from_millis(50), third).await;
        assert!(third.is_err(), "its own bound");
        for waiting in waiting {
            waiting.abort();
        }
    }

    #[tokio::test]
    async fn groups_without_a_turn_are_forgotten() {
        let turns = Turns::new(4, 2);
        for group in 0..100 {
            drop(turns.next(&format!("{group}").into()).await);
        }
        assert_eq!(turns.lock().len(), 1);
    }
}
