//! A held packet as it leaves the kernel. It is kept and given back unchanged: only its first byte
//! may be, to say that it is to be dropped.

use std::net::IpAddr;

use handfast_layout::{self as layout, DISCARD, HOLD_META_LEN, HoldMeta, Hook, packet::outer};

use crate::{Direction, EndpointId, HoldKey, types::to_ip};

/// Length of the virtio net header before each frame (linux/virtio_net.h, without `num_buffers`).
pub(super) const VNET_LEN: usize = 10;
const ETHERNET: usize = 14;

/// Why a frame is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than its headers.
    #[error("shorter than its headers")]
    Short,
    /// No gate wrote its first bytes.
    #[error("no gate wrote its first bytes")]
    NoMeta,
    /// No IP header behind them.
    #[error("no IP header")]
    NotIp,
}

/// A frame, still in its buffer.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    bytes: &'a [u8],
    meta: HoldMeta,
    source: IpAddr,
    destination: IpAddr,
}

impl<'a> Frame<'a> {
    /// Reads what the hold device gave.
    ///
    /// # Errors
    /// It is none of ours: nothing but a gate may send to the device.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let frame = bytes.get(VNET_LEN..).ok_or(FrameError::Short)?;
        let meta: [u8; HOLD_META_LEN] = frame
            .get(..HOLD_META_LEN)
            .and_then(|m| m.try_into().ok())
            .ok_or(FrameError::Short)?;
        let meta = HoldMeta::from_bytes(meta).ok_or(FrameError::NoMeta)?;
        let ethertype: [u8; 2] = frame
            .get(HOLD_META_LEN..ETHERNET)
            .and_then(|e| e.try_into().ok())
            .ok_or(FrameError::Short)?;
        let header = outer::read(&frame, u16::from_be_bytes(ethertype), ETHERNET as u32)
            .ok_or(FrameError::NotIp)?;
        Ok(Self {
            bytes,
            meta,
            source: to_ip(header.src),
            destination: to_ip(header.dst),
        })
    }

    /// Copies it out of the buffer, to be kept.
    pub fn keep(self) -> Held {
        let direction = match self.meta.hook {
            Hook::ToTunnel => Direction::Egress,
            _ => Direction::Ingress,
        };
        let remote = match direction {
            Direction::Egress => self.destination,
            Direction::Ingress => self.source,
        };
        Held {
            key: HoldKey {
                endpoint: EndpointId(self.meta.endpoint),
                direction,
                remote,
            },
            hook: self.meta.hook,
            bytes: self.bytes.into(),
        }
    }
}

/// A held packet. Dropping it without giving it back leaves it counted: give back or discard.
#[derive(Debug)]
#[must_use]
pub struct Held {
    key: HoldKey,
    hook: Hook,
    bytes: Box<[u8]>,
}

impl Held {
    /// What it is held under.
    pub fn key(&self) -> HoldKey {
        self.key
    }

    /// Where it was taken.
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// What keeping it costs.
    pub fn memory(&self) -> usize {
        self.bytes.len()
    }

    /// As it came.
    pub(super) fn frame(&self) -> &[u8] {
        &self.bytes
    }

    /// Header only, and marked to be dropped.
    pub(super) fn refusal(&self) -> [u8; VNET_LEN + ETHERNET] {
        let mut refusal = [0; VNET_LEN + ETHERNET];
        for (to, from) in refusal.iter_mut().zip(&self.bytes).skip(VNET_LEN) {
            *to = *from;
        }
        if let Some(first) = refusal.get_mut(VNET_LEN) {
            *first |= DISCARD;
        }
        refusal
    }
}

const _: () = assert!(layout::HOLD_META_LEN + 2 == ETHERNET);

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(hook: Hook) -> Vec<u8> {
        let mut bytes = vec![0; VNET_LEN];
        let meta = HoldMeta {
            hook,
            discard: false,
            endpoint: 7,
            ticket: 9,
        };
        bytes.extend(meta.to_bytes());
        bytes.extend([8, 0]);
        bytes.extend([
            0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        bytes
    }

    #[test]
    fn the_key_is_the_one_that_the_gate_counts_under() {
        let bytes = frame(Hook::ToTunnel);
        let held = Frame::parse(&bytes).unwrap().keep();
        let key = HoldKey {
            endpoint: EndpointId(7),
            direction: Direction::Egress,
            remote: "10.0.0.2".parse().unwrap(),
        };
        assert_eq!(held.key(), key);
        let bytes = frame(Hook::ToEndpoint);
        let held = Frame::parse(&bytes).unwrap().keep();
        assert_eq!(held.key().remote, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(held.key().direction, Direction::Ingress);
    }

    #[test]
    fn a_refusal_carries_the_ticket_and_nothing_else() {
        let bytes = frame(Hook::FromTunnel);
        let refusal = Frame::parse(&bytes).unwrap().keep().refusal();
        let meta: [u8; 12] = refusal[10..22].try_into().unwrap();
        let meta = HoldMeta::from_bytes(meta).unwrap();
        assert!(meta.discard && meta.ticket == 9);
    }

    #[test]
    fn what_no_gate_wrote_is_refused() {
        assert_eq!(Frame::parse(&[]).unwrap_err(), FrameError::Short);
        assert_eq!(Frame::parse(&[0; 60]).unwrap_err(), FrameError::NoMeta);
        let bytes = frame(Hook::ToTunnel);
        assert_eq!(Frame::parse(&bytes[..30]).unwrap_err(), FrameError::NotIp);
    }
}
