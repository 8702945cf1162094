//! Which sessions' secrets were used already.

use std::collections::VecDeque;

/// How many are remembered. A secret comes from a live session's exporter: an older one has no way to come again, and a
/// peer that opens session after session must not fill the memory.
const REMEMBERED: usize = 4096;

/// Fingerprints of secrets, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Spent(VecDeque<[u8; 16]>);

impl Spent {
    /// Notes that this one is used now. False if it was before.
    pub(super) fn take(&mut self, fingerprint: [u8; 16]) -> bool {
        if self.0.contains(&fingerprint) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(fingerprint);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_used_once_and_memory_has_an_end() {
        let mut spent = Spent::default();
        let fingerprint = |number: u128| number.to_le_bytes();
        for number in 0..=REMEMBERED as u128 {
            assert!(spent.take(fingerprint(number)));
            assert!(!spent.take(fingerprint(number)));
        }
        assert!(!spent.take(fingerprint(1)));
        assert_eq!(spent.0.len(), REMEMBERED);
    }
}
