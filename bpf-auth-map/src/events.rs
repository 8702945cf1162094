//! What the programs tell as it happens.

use std::{net::IpAddr, time::Duration};

use aya::maps::{MapData, RingBuf};
use handfast_layout::{self as layout, EventKind, Hook, Reason};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use crate::{Direction, EndpointId, Error, IdentityNumber, PeerNumber, types::to_ip};

/// Programs wake nobody for most of what they tell: the ring is looked at so often.
const LOOK: Duration = Duration::from_millis(100);

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Boot time.
    pub time: Duration,
    /// What happened.
    pub kind: EventKind,
    /// Why.
    pub reason: Reason,
    /// At which hook.
    pub hook: Hook,
    /// As the endpoint sees it.
    pub direction: Direction,
    /// IP protocol.
    pub protocol: u8,
    /// Type of an ICMP packet; 0 for other protocols.
    pub icmp_type: u8,
    /// Address and port of the endpoint; for ICMP the identifier in place of the port. Unspecified where the packet could not be read.
    pub local: (IpAddr, u16),
    /// Address and port of the other side.
    pub remote: (IpAddr, u16),
    /// The endpoint, if it is known.
    pub endpoint: Option<EndpointId>,
    /// Its identity, if it is known.
    pub local_identity: Option<IdentityNumber>,
    /// The other side's identity, if it is known.
    pub remote_identity: Option<IdentityNumber>,
    /// The peer, if the other side is on one.
    pub peer: Option<PeerNumber>,
    /// The rule that decided, if one did.
    pub rule: Option<u32>,
    /// Length of the packet.
    pub bytes: u32,
    /// Index of the interface.
    pub ifindex: u32,
}

/// The stream of events. What does not fit its ring is counted as [`Reason::EventLost`].
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    pub(crate) fn new(ring: RingBuf<MapData>) -> Result<Self, Error> {
        // SAFETY: the ring owns its map's descriptor, and nothing here exchanges it.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| Error::io("waiting for events", error.into()))?;
        Ok(Self { ring })
    }

    /// The next event. Safe to cancel.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            while let Some(record) = self.ring.get_mut().next() {
                // A record that cannot be read is from programs of another version: skipped.
                if let Some(event) = Event::parse(&record) {
                    return Ok(event);
                }
            }
            if let Ok(woken) = timeout(LOOK, self.ring.readable_mut()).await {
                woken
                    .map_err(|source| Error::io("waiting for events", source))?
                    .clear_ready();
            }
        }
    }
}

impl Event {
    /// Reads a record; none from programs of another version.
    pub fn parse(record: &[u8]) -> Option<Self> {
        if record.len() < size_of::<layout::Event>() {
            return None;
        }
        // SAFETY: long enough, and any bytes are an event; the record need not be aligned.
        let raw: layout::Event =
            unsafe { record.as_ptr().cast::<layout::Event>().read_unaligned() };
        let some = |number: u32| (number != 0).then_some(number);
        Some(Self {
            time: Duration::from_nanos(raw.time),
            kind: EventKind::from_number(raw.kind)?,
            reason: Reason::from_number(raw.reason)?,
            hook: Hook::from_number(raw.hook)?,
            direction: Direction::from_number(raw.direction),
            protocol: raw.proto,
            icmp_type: raw.icmp_type,
            local: (to_ip(raw.local), u16::from_be(raw.local_port)),
            remote: (to_ip(raw.remote), u16::from_be(raw.remote_port)),
            endpoint: some(raw.endpoint).map(EndpointId),
            local_identity: some(raw.local_identity).map(IdentityNumber),
            remote_identity: some(raw.remote_identity).map(IdentityNumber),
            peer: some(raw.peer).map(PeerNumber),
            rule: some(raw.rule),
            bytes: raw.bytes,
            ifindex: raw.ifindex,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_strange_bytes_is_skipped() {
        assert_eq!(Event::parse(&[0; 10]), None);
        assert_eq!(Event::parse(&[0xff; 80]), None);
    }
}
