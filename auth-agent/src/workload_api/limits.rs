//! How much of this endpoint one caller can take: everybody on the node may connect, so nobody may take it all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Peer;

/// What callers may hold at a time.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections in all. Each costs two descriptors.
    pub connections: usize,
    /// Connections of one user, root included.
    pub user_connections: usize,
    /// Connections of one process.
    pub process_connections: usize,
    /// Calls of one user, streams included.
    pub user_calls: usize,
    /// Calls of one process, streams included.
    pub process_calls: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            user_connections: 2048,
            process_connections: 64,
            user_calls: 8192,
            process_calls: 256,
        }
    }
}

/// Who holds how much.
#[derive(Debug)]
pub(super) struct Ledger {
    limits: Limits,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    held: HashMap<Holder, usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Holder {
    UserConnections(u32),
    ProcessConnections(u32),
    UserCalls(u32),
    ProcessCalls(u32),
}

/// A place that was taken; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    ledger: Arc<Ledger>,
    user: Holder,
    process: Holder,
    connection: bool,
}

/// Whose bound was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("the endpoint has as many connections as it takes")]
    Endpoint,
    #[error("this user holds as much as one user may")]
    User,
    #[error("this process holds as much as one process may")]
    Process,
}

impl Ledger {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            counts: Mutex::default(),
        })
    }

    pub(super) fn connection(self: &Arc<Self>, peer: &Peer) -> Result<Place, Full> {
        self.take(
            (
                Holder::UserConnections(peer.uid()),
                self.limits.user_connections,
            ),
            (
                Holder::ProcessConnections(peer.pid()),
                self.limits.process_connections,
            ),
            true,
        )
    }

    pub(super) fn call(self: &Arc<Self>, peer: &Peer) -> Result<Place, Full> {
        self.take(
            (Holder::UserCalls(peer.uid()), self.limits.user_calls),
            (Holder::ProcessCalls(peer.pid()), self.limits.process_calls),
            false,
        )
    }

    fn take(
        self: &Arc<Self>,
        (user, of_user): (Holder, usize),
        (process, of_process): (Holder, usize),
        connection: bool,
    ) -> Result<Place, Full> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let held = |holder| counts.held.get(&holder).copied().unwrap_or(0);
        if connection && counts.connections >= self.limits.connections {
            return Err(Full::Endpoint);
        }
        if held(process) >= of_process {
            return Err(Full::Process);
        }
        if held(user) >= of_user {
            return Err(Full::User);
        }
        counts.connections += usize::from(connection);
        for holder in [user, process] {
            *counts.held.entry(holder).or_default() += 1;
        }
        Ok(Place {
            ledger: Arc::clone(self),
            user,
            process,
            connection,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let counts = self.ledger.counts.lock();
        let mut counts = counts.unwrap_or_else(PoisonError::into_inner);
        counts.connections -= usize::from(self.connection);
        for holder in [self.user, self.process] {
            if let Some(held) = counts.held.get_mut(&holder) {
                *held -= 1;
                if *held == 0 {
                    counts.held.remove(&holder);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer::of(std::os::unix::net::UnixStream::pair().unwrap().0).unwrap()
    }

    #[test]
    fn places_are_bounded_by_process_user_and_in_all_and_come_back() {
        let peer = peer();
        let refusal = |limits| {
            let ledger = Ledger::new(limits);
            let places: Vec<Place> = (0..2).map(|_| ledger.connection(&peer).unwrap()).collect();
            let refused = ledger.connection(&peer).unwrap_err();
            drop(places);
            assert!(ledger.connection(&peer).is_ok(), "places come back");
            assert!(ledger.counts.lock().unwrap().held.is_empty());
            refused
        };
        let all = Limits::default();
        assert_eq!(
            refusal(Limits {
                process_connections: 2,
                ..all
            }),
            Full::Process
        );
        assert_eq!(
            refusal(Limits {
                user_connections: 2,
                ..all
            }),
            Full::User
        );
        assert_eq!(
            refusal(Limits {
                connections: 2,
                ..all
            }),
            Full::Endpoint
        );
        let ledger = Ledger::new(Limits {
            process_calls: 1,
            ..all
        });
        let call = ledger.call(&peer).unwrap();
        assert_eq!(ledger.call(&peer).unwrap_err(), Full::Process);
        assert!(ledger.connection(&peer).is_ok(), "calls are no connections");
        drop(call);
        assert!(ledger.call(&peer).is_ok());
    }
}
