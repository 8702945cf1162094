//! Who is where on other nodes, and who of here has been told to whom.

use std::{net::IpAddr, time::Duration};

use handfast_layout as layout;

use super::Tables;
use crate::{
    Announced, AnnouncedState, EndpointId, Epoch, Error, IdentityNumber, PeerNumber, Remote,
    clock::nanoseconds,
    types::{to_addr, to_ip},
};

impl Tables {
    /// Writes what is known of a remote address, or a refusal.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_remote(&self, address: IpAddr, remote: &Remote) -> Result<(), Error> {
        let value = layout::Remote {
            identity: remote.identity.0,
            peer: remote.peer.0,
            epoch: remote.epoch.0,
            flags: if remote.refused_until.is_some() {
                layout::REMOTE_REFUSED
            } else {
                0
            },
            generation: remote.generation,
            expires: remote.refused_until.map_or(0, nanoseconds),
        };
        self.changing(|| self.remotes.set(&to_addr(address), &value))
    }

    /// Writes that a peer does not say who has an address: it is not asked for until then.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn refuse_remote(
        &self,
        address: IpAddr,
        peer: PeerNumber,
        until: Duration,
    ) -> Result<(), Error> {
        let refusal = Remote {
            identity: IdentityNumber::UNKNOWN,
            peer,
            epoch: Epoch(0),
            generation: 0,
            refused_until: Some(until),
        };
        self.set_remote(address, &refusal)
    }

    /// Forgets a remote address.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_remote(&self, address: IpAddr) -> Result<(), Error> {
        self.changing(|| self.remotes.remove(&to_addr(address)))
    }

    /// Writes how far an announcement of ours is.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_announced(
        &self,
        address: IpAddr,
        peer: PeerNumber,
        announced: &Announced,
    ) -> Result<(), Error> {
        let value = layout::Announced {
            endpoint: announced.endpoint.0,
            epoch: announced.epoch.0,
            state: match announced.state {
                AnnouncedState::Sent => layout::ANNOUNCED_SENT,
                AnnouncedState::Confirmed => layout::ANNOUNCED_CONFIRMED,
                AnnouncedState::Withdrawing => layout::ANNOUNCED_WITHDRAWING,
            },
            reserved: 0,
            generation: announced.generation,
        };
        let key = layout::AnnouncedKey {
            local: to_addr(address),
            peer: peer.0,
        };
        self.changing(|| self.announced.set(&key, &value))
    }

    /// Forgets an announcement of ours.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_announced(&self, address: IpAddr, peer: PeerNumber) -> Result<(), Error> {
        let key = layout::AnnouncedKey {
            local: to_addr(address),
            peer: peer.0,
        };
        self.changing(|| self.announced.remove(&key))
    }

    /// All announcements of ours.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn announced(&self) -> Result<Vec<(IpAddr, PeerNumber, Announced)>, Error> {
        self.announced.all(|key, value| {
            let announced = Announced {
                endpoint: EndpointId(value.endpoint),
                epoch: Epoch(value.epoch),
                state: match value.state {
                    layout::ANNOUNCED_SENT => AnnouncedState::Sent,
                    layout::ANNOUNCED_CONFIRMED => AnnouncedState::Confirmed,
                    _ => AnnouncedState::Withdrawing,
                },
                generation: value.generation,
            };
            (to_ip(key.local), PeerNumber(key.peer), announced)
        })
    }
}
