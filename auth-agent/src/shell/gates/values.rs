//! The core's values as the maps have them.

use handfast_bpf as bpf;

use crate::core::{
    AnnouncedEntry, AnnouncedState, IdentityNumber, PairKey, PeerNumber, RemoteEntry, SessionEntry,
    SessionState,
};

pub(super) fn number(peer: PeerNumber) -> bpf::PeerNumber {
    bpf::PeerNumber(peer.0)
}

pub(super) fn identity_number(number: IdentityNumber) -> bpf::IdentityNumber {
    bpf::IdentityNumber(number.0)
}

pub(super) fn to_pair_key(pair: PairKey) -> bpf::PairKey {
    bpf::PairKey {
        local: identity_number(pair.local),
        remote: identity_number(pair.remote),
        peer: number(pair.peer),
    }
}

pub(super) fn to_session(session: SessionEntry) -> bpf::Session {
    bpf::Session {
        oldest: bpf::Epoch(session.oldest),
        current: bpf::Epoch(session.current),
        expires: session.expires,
        state: match session.state {
            SessionState::Pending => bpf::SessionState::Pending,
            SessionState::Ready => bpf::SessionState::Ready,
            SessionState::Cut => bpf::SessionState::Cut,
        },
    }
}

pub(super) fn to_announced(announced: AnnouncedEntry) -> bpf::Announced {
    bpf::Announced {
        endpoint: bpf::EndpointId(announced.endpoint.0),
        epoch: bpf::Epoch(announced.epoch),
        state: match announced.state {
            AnnouncedState::Sent => bpf::AnnouncedState::Sent,
            AnnouncedState::Confirmed => bpf::AnnouncedState::Confirmed,
            AnnouncedState::Withdrawing => bpf::AnnouncedState::Withdrawing,
        },
        generation: announced.generation,
    }
}

pub(super) fn to_remote(remote: RemoteEntry) -> bpf::Remote {
    bpf::Remote {
        identity: identity_number(remote.identity),
        peer: number(remote.peer),
        epoch: bpf::Epoch(remote.epoch),
        generation: remote.generation,
        refused_until: None,
    }
}
