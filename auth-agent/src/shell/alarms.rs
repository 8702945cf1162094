//! What deserves a person's attention, with its time, until it is over or an hour old.

use std::collections::VecDeque;
use std::time::Duration;

use crate::admin::AlarmInfo;
use crate::core::Now;

/// This many are remembered.
const MOST: usize = 32;
/// This long. What lasts is said again.
const LASTING: Duration = Duration::from_secs(3600);

/// What can end an alarm before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    /// Nothing that is heard of.
    Any,
    /// Something was refused because it is revoked: a deny list that lifts something.
    Revoked,
    /// Nothing is signed because the clocks differ: a call that is answered again.
    Clocks,
    /// The CA does not want this node: that it is reached again.
    TurnedAway,
}

/// Oldest first.
#[derive(Debug, Default)]
pub(super) struct Alarms(VecDeque<Kept>);

#[derive(Debug)]
struct Kept {
    said: AlarmInfo,
    /// Since the kernel's boot: the wall's clock may be set.
    since: Duration,
    topic: Topic,
}

impl Alarms {
    /// Remembers one. What is said again is the newest again.
    pub(super) fn raise(&mut self, text: String, topic: Topic, now: Now) {
        self.0.retain(|kept| kept.said.text != text);
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(Kept {
            said: AlarmInfo { at: now.wall, text },
            since: now.boot,
            topic,
        });
    }

    /// Forgets what is over.
    pub(super) fn over(&mut self, topic: Topic) {
        self.0.retain(|kept| kept.topic != topic);
    }

    /// What was said last of something that is not over.
    pub(super) fn about(&self, topic: Topic) -> Option<&str> {
        let mut kept = self.0.iter().rev();
        let last = kept.find(|kept| kept.topic == topic);
        last.map(|kept| kept.said.text.as_str())
    }

    /// Those of the last hour.
    pub(super) fn all(&self, now: Now) -> Vec<AlarmInfo> {
        let kept = self.0.iter();
        kept.filter(|kept| now.boot.saturating_sub(kept.since) < LASTING)
            .map(|kept| kept.said.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now {
            boot: Duration::from_secs(seconds),
            wall: 1_000_000 + seconds,
        }
    }

    fn texts(alarms: &Alarms, now: u64) -> Vec<(u64, String)> {
        let all = alarms.all(at(now)).into_iter();
        all.map(|alarm| (alarm.at - 1_000_000, alarm.text))
            .collect()
    }

    #[test]
    fn an_alarm_is_shown_with_its_last_time_for_an_hour() {
        let mut alarms = Alarms::default();
        alarms.raise("disk".into(), Topic::Any, at(0));
        alarms.raise("tunnel".into(), Topic::Any, at(10));
        alarms.raise("disk".into(), Topic::Any, at(20));
        let both = vec![(10, "tunnel".to_owned()), (20, "disk".to_owned())];
        assert_eq!(texts(&alarms, 3609), both);
        assert_eq!(texts(&alarms, 3610), both[1..]);
        assert!(texts(&alarms, 3620).is_empty());
    }

    #[test]
    fn what_is_over_goes_and_the_rest_stays() {
        let mut alarms = Alarms::default();
        alarms.raise("db1 refuses: revoked".into(), Topic::Revoked, at(0));
        alarms.raise("disk".into(), Topic::Any, at(0));
        assert_eq!(alarms.about(Topic::Revoked), Some("db1 refuses: revoked"));
        alarms.over(Topic::Revoked);
        assert_eq!(alarms.about(Topic::Revoked), None);
        assert_eq!(texts(&alarms, 1), [(0, "disk".to_owned())]);
    }

    #[test]
    fn only_so_many_are_remembered() {
        let mut alarms = Alarms::default();
        for number in 0..100 {
            alarms.raise(number.to_string(), Topic::Any, at(0));
        }
        let kept = texts(&alarms, 1);
        assert_eq!(kept.len(), MOST);
        assert_eq!(kept.last(), Some(&(0, "99".to_owned())));
    }
}
