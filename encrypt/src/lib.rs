//! Tunnels between nodes: WireGuard and IPsec, behind one trait.
//!
//! What leaves a node toward another one is keyed by the session that proved the two to each other. This crate
//! owns everything on the host that this needs: the tunnel device (in the kernel, or a userspace daemon that
//! outlives the agent), its peers, the routing table and rule that bring managed prefixes to it, and the
//! nftables chain that keeps source addresses true.
//!
//! The order of a start, so that nothing passes ungated: [`WireGuard::open`] or [`Ipsec::open`] (the device is down), attach the
//! gates to [`Tunnel::device`], [`Tunnel::up`], then [`Routes::set`]. After [`Health::Replaced`] the same again.
#![deny(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod error;
#[doc(hidden)]
pub mod foreign;
mod ipsec;
mod keys;
mod mtu;
pub mod nat;
mod netlink;
mod prefixes;
pub mod probe;
mod programs;
mod route;
mod tunnel;
mod wireguard;

pub use error::Error;
pub use ipsec::{Ipsec, IpsecOptions, Lifetime};
pub use keys::{PresharedKey, PrivateKey, PublicKey};
pub use route::{RouteOptions, Routes};
pub use tunnel::{Backend, Device, Health, Losses, Peer, PeerStatus, StaticKey, Status, Tunnel};
pub use wireguard::{Choice, DeviceName, Options, WireGuard};
