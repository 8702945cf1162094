//! Why a packet was dropped or held, and what else is counted.

/// Builds [`Reason`] with its numbers, names and texts in one place.
macro_rules! reasons {
    ($($number:literal $name:ident $slug:literal $text:literal;)*) => {
        /// A counter's index; in an event, why.
        #[repr(u16)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $(#[doc = $text] $name = $number,)*
        }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// From its number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// Short name for metrics, logs and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $slug,)* }
            }

            /// One sentence for people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    0 Passed "passed" "passed as part of a known flow";
    1 Opened "opened" "first packet of a flow that policy lets through";
    2 Held "held" "held until its pair is decided";
    3 Returned "returned" "given back from hold";
    4 Audited "audited" "passed without a proof, by a rule in audit mode";
    5 Host "host" "sent by the node itself to a workload";
    6 Link "link" "address resolution, neighbour discovery or DHCP on the workload's link";
    7 EventLost "event-lost" "an event did not fit the ring or the endpoint's budget";
    8 Internal "internal" "a program could not do its work (map or helper failed)";

    10 Malformed "malformed" "the packet's headers are cut off or contradict themselves";
    11 NotIp "not-ip" "neither IPv4 nor IPv6";
    12 Options "ip-options" "IPv4 options or an IPv6 routing header, which could change the destination";
    13 Fragment "fragment" "a fragment whose first one has not been seen";
    14 IcmpNoFlow "icmp-no-flow" "an ICMP error about no flow that is known";

    20 Spoofed "spoofed" "the source address is not the endpoint's";
    21 NoEndpoint "no-endpoint" "the local address belongs to no endpoint of this node";
    22 Ungated "ungated" "the source did not come through its endpoint's gate";
    23 HostMade "host-made" "sent by the node itself into the tunnel: it has no identity";
    24 NotManaged "not-managed" "no node's prefix contains the remote address";
    25 OtherEndpoint "other-endpoint" "the destination address is not this endpoint's";
    26 HostDenied "host-denied" "the node may not send to workloads (setting)";
    27 OtherWorkload "other-workload" "the address is a host endpoint's, and the socket does not belong to its control group";

    30 NoSession "no-session" "no session with the peer";
    31 SessionPending "session-pending" "the session with the peer is not ready";
    32 SessionExpired "session-expired" "the session with the peer has expired";
    33 SessionCut "session-cut" "the session with the peer was cut";
    34 RemoteUnknown "remote-unknown" "nobody has announced the remote address";
    35 RemoteRefused "remote-refused" "the peer does not say who has the remote address";
    36 RemoteElsewhere "remote-elsewhere" "the remote address was announced by another peer than its prefix's";
    37 EpochStale "epoch-stale" "the remote address was announced in a session that has ended";
    38 NotAnnounced "not-announced" "the local address is not announced to the peer";
    39 AnnouncedOther "announced-other" "the peer knows the local address as another endpoint's";
    40 Withdrawing "withdrawing" "the local address is being withdrawn from the peer";
    41 Unconfirmed "unconfirmed" "the peer has not confirmed the local address yet";
    42 OtherTunnel "other-tunnel" "came out of another peer's tunnel than that of its source address";

    50 NoRule "no-rule" "policy: no rule allows it";
    51 Denied "denied" "policy: a rule denies it";
    52 NoPair "no-pair" "the two identities are not proven to each other";
    53 PairExpired "pair-expired" "the proof of the two identities has expired";
    54 TestFail "test-always-fail" "policy: a rule in mode test-always-fail";
    55 IdentityExpired "identity-expired" "the proof of one identity has expired";
    56 IdentityRevoked "identity-revoked" "one identity is revoked";
    57 NoIdentity "no-identity" "the rule wants a proof or encryption, and the other side is outside the mesh";
    58 Undecided "undecided" "policy: no rule allows the destination, and no translation made it another";

    60 ConnectionsFull "connections-full" "no room for a new flow";
    61 EndpointFull "endpoint-full" "the endpoint has too many flows";

    70 HoldPairFull "hold-pair-full" "too much is held for this pair";
    71 HoldEndpointFull "hold-endpoint-full" "too much is held for this endpoint";
    72 HoldPeerFull "hold-peer-full" "too much is held for this peer";
    73 HoldTotalFull "hold-total-full" "too much is held in all";
    74 HoldAway "hold-away" "nobody is there to hold it: the agent is down";
    75 HoldGone "hold-gone" "given back for an interface that is gone";
    76 HoldAgain "hold-again" "given back from hold, and still undecided";
    77 HoldStray "hold-stray" "on the hold device without a ticket";
    78 Discarded "discarded" "held until the agent gave it up";

    80 Cleartext "cleartext" "from a managed address, but not through the tunnel";
    81 WireOut "wire-out" "tripwire: managed to managed in cleartext, leaving";
    82 WireIn "wire-in" "tripwire: managed to managed in cleartext, arriving";
    83 WireOutInside "wire-out-inside" "tripwire: managed to managed in cleartext inside an encapsulation, leaving";
    84 WireInInside "wire-in-inside" "tripwire: managed to managed in cleartext inside an encapsulation, arriving";
    85 WireJoining "wire-joining" "cleartext between managed addresses, passed because one of the nodes is joining";
}

/// Size of the `counters` map.
pub const REASONS: u32 = 96;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_names_and_bounds_agree() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_number(*reason as u16), Some(*reason));
            assert!((*reason as u32) < REASONS);
            assert_eq!(
                Reason::ALL
                    .iter()
                    .filter(|r| r.name() == reason.name())
                    .count(),
                1
            );
        }
    }
}
