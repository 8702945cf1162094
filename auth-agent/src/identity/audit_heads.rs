//! How far the audit logs of the CA's servers had come: a log that is cut off or written anew contradicts it.

use std::collections::BTreeMap;

use handfast_ca::audit::{AuditHead, Position};

/// The newest head of each server.
#[derive(Debug, Default)]
pub struct AuditHeads {
    newest: BTreeMap<String, AuditHead>,
    /// What was last found wrong with a server's log: a log that was restored contradicts what is kept with each head, until
    /// it has as many lines again.
    told: BTreeMap<String, Gist>,
}

/// A log is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Tampered {
    /// Lines are gone.
    #[error(
        "the audit log of CA server {server} had {had} lines and now says {has}: it was cut off, or restored from a backup"
    )]
    Shorter {
        /// Whose log.
        server: String,
        /// Lines that it had.
        had: u64,
        /// Lines that it says it has.
        has: u64,
    },
    /// Other lines stand in their place.
    #[error(
        "the audit log of CA server {server} has another line {line} than before: it was written anew"
    )]
    Forked {
        /// Whose log.
        server: String,
        /// The last line of both.
        line: u64,
    },
}

/// What makes an alarm the same as one before: its kind, and the line up to which the log was known.
type Gist = (bool, u64);

impl Tampered {
    fn gist(&self) -> Gist {
        match self {
            Self::Shorter { had, .. } => (false, *had),
            Self::Forked { line, .. } => (true, *line),
        }
    }
}

impl AuditHeads {
    /// With heads that were kept.
    pub fn new(heads: impl IntoIterator<Item = AuditHead>) -> Self {
        let mut all = Self::default();
        for head in heads {
            all.newest.insert(head.server().to_owned(), head);
        }
        all
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &AuditHead> {
        self.newest.values()
    }

    /// Compares a head with the one before, and remembers it if it is newer. True: it is to be kept.
    ///
    /// # Errors
    /// The log has gone back or forked; the head before stays. Each is said once.
    pub fn take(&mut self, head: AuditHead) -> Result<bool, Tampered> {
        let server = head.server().to_owned();
        let judged = match self.newest.get(&server) {
            Some(known) => follows(&server, seen(known), seen(&head)),
            None => Ok(true),
        };
        let newer = once(&mut self.told, &server, judged)?;
        if newer {
            self.newest.insert(server, head);
        }
        Ok(newer)
    }
}

/// Says what is wrong unless that was the last thing that was said of this server.
fn once(
    told: &mut BTreeMap<String, Gist>,
    server: &str,
    judged: Result<bool, Tampered>,
) -> Result<bool, Tampered> {
    match judged {
        Ok(newer) => {
            if newer {
                told.remove(server);
            }
            Ok(newer)
        }
        Err(tampered) => match told.insert(server.to_owned(), tampered.gist()) {
            Some(before) if before == tampered.gist() => Ok(false),
            _ => Err(tampered),
        },
    }
}

/// Where a log stood, and when (unix milliseconds by its server's clock).
type Seen = (Position, u64);

fn seen(head: &AuditHead) -> Seen {
    (head.position(), head.at_ms())
}

/// Does a head say more than the one that is known? False if it only repeats it, or comes late.
fn follows(server: &str, known: Seen, head: Seen) -> Result<bool, Tampered> {
    let ((had, had_at), (has, has_at)) = (known, head);
    if has.entries > had.entries {
        return Ok(true);
    }
    if has.entries == had.entries && has != had {
        return Err(Tampered::Forked {
            server: server.to_owned(),
            line: has.entries,
        });
    }
    // An older head may come late, by way of another server; only a newer one must not have fewer lines.
    if has.entries < had.entries && has_at > had_at {
        return Err(Tampered::Shorter {
            server: server.to_owned(),
            had: had.entries,
            has: has.entries,
        });
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(entries: u64, hash: &str, at_ms: u64) -> Seen {
        let hash = hash.repeat(32).parse().unwrap();
        (Position { entries, hash }, at_ms)
    }

    fn judge(known: Seen, head: Seen) -> Result<bool, Tampered> {
        follows("ca", known, head)
    }

    #[test]
    fn a_log_that_grows_is_followed_and_one_that_repeats_itself_is_not_kept_again() {
        assert_eq!(judge(at(5, "aa", 10), at(6, "bb", 11)), Ok(true));
        assert_eq!(judge(at(5, "aa", 10), at(5, "aa", 99)), Ok(false));
    }

    #[test]
    fn a_log_that_has_fewer_lines_than_before_was_cut_off() {
        let shorter = judge(at(5, "aa", 10), at(4, "bb", 11)).unwrap_err();
        assert_eq!(
            shorter,
            Tampered::Shorter {
                server: "ca".into(),
                had: 5,
                has: 4
            }
        );
    }

    #[test]
    fn what_is_wrong_is_said_once_and_again_when_it_is_something_else() {
        let mut told = BTreeMap::new();
        let mut said = |had: u64, has: u64| {
            let judged = judge(at(had, "aa", 10), at(has, "bb", 11));
            once(&mut told, "ca", judged).is_err()
        };
        assert_eq!((said(5, 1), said(5, 2), said(5, 4)), (true, false, false));
        assert!(said(5, 5), "another line in the place of one that was seen");
        assert!(said(5, 3), "and it has gone back again");
        assert!(!said(5, 6), "it goes on");
        assert!(said(6, 2));
    }

    #[test]
    fn a_head_that_comes_late_by_way_of_another_server_is_no_alarm() {
        assert_eq!(judge(at(5, "aa", 10), at(4, "bb", 9)), Ok(false));
    }

    #[test]
    fn another_line_in_the_place_of_one_that_was_seen_is_a_fork_however_old_it_says_it_is() {
        for at_ms in [9, 10, 11] {
            let forked = judge(at(5, "aa", 10), at(5, "bb", at_ms));
            assert!(matches!(forked, Err(Tampered::Forked { line: 5, .. })));
        }
    }
}
