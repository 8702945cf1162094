//! What has been proven: sessions with peers, identities, and their pairs.

use std::time::Duration;

use handfast_layout as layout;

use super::Tables;
use crate::{
    Epoch, Error, Identity, IdentityNumber, Pair, PairKey, PeerNumber, Session, SessionState,
    clock::nanoseconds,
};

impl Tables {
    /// Writes a session.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_session(&self, peer: PeerNumber, session: &Session) -> Result<(), Error> {
        let value = layout::Session {
            oldest: session.oldest.0,
            current: session.current.0,
            expiry: nanoseconds(session.expires),
            state: match session.state {
                SessionState::Pending => layout::SESSION_PENDING,
                SessionState::Ready => layout::SESSION_READY,
                SessionState::Cut => layout::SESSION_CUT,
            },
            reserved: 0,
        };
        self.changing(|| self.sessions.set(&peer.0, &value))
    }

    /// Forgets a session.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_session(&self, peer: PeerNumber) -> Result<(), Error> {
        self.changing(|| self.sessions.remove(&peer.0))
    }

    /// Writes what is known of an identity.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_identity(&self, number: IdentityNumber, identity: &Identity) -> Result<(), Error> {
        let value = layout::Identity {
            valid_until: nanoseconds(identity.valid_until),
            revoked: u32::from(identity.revoked),
            reserved: 0,
        };
        self.changing(|| self.identities.set(&number.0, &value))
    }

    /// Forgets an identity.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_identity(&self, number: IdentityNumber) -> Result<(), Error> {
        self.changing(|| self.identities.remove(&number.0))
    }

    /// Records a pair.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_pair(&self, key: PairKey, pair: Pair) -> Result<(), Error> {
        let value = layout::Auth {
            expiry: nanoseconds(pair.expires),
            epoch: pair.epoch.0,
            reserved: 0,
        };
        self.auth.set(&auth_key(key), &value)
    }

    /// Forgets a pair.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_pair(&self, key: PairKey) -> Result<(), Error> {
        self.auth.remove(&auth_key(key))
    }

    /// All pairs.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn pairs(&self) -> Result<Vec<(PairKey, Pair)>, Error> {
        self.auth.all(|key, value| {
            let key = PairKey {
                local: IdentityNumber(key.local),
                remote: IdentityNumber(key.remote),
                peer: PeerNumber(key.peer),
            };
            let pair = Pair {
                expires: Duration::from_nanos(value.expiry),
                epoch: Epoch(value.epoch),
            };
            (key, pair)
        })
    }

    /// Removes what a peer's ended sessions left: pairs, remotes and announcements of an epoch
    /// below this one.
    ///
    /// # Errors
    /// A map could not be written; those before it are swept.
    pub fn sweep_epoch(&self, peer: PeerNumber, below: Epoch) -> Result<(), Error> {
        self.auth
            .retain(|key, value| key.peer != peer.0 || value.epoch >= below.0)?;
        self.changing(|| {
            self.remotes.retain(|_, value| {
                value.peer != peer.0
                    || value.epoch >= below.0
                    || value.flags & layout::REMOTE_REFUSED != 0
            })?;
            self.announced.retain(|key, value| {
                key.peer != peer.0
                    || value.epoch >= below.0
                    || value.state == layout::ANNOUNCED_WITHDRAWING
            })
        })
    }
}

fn auth_key(key: PairKey) -> layout::AuthKey {
    layout::AuthKey::new(key.local.0, key.remote.0, key.peer.0)
}
