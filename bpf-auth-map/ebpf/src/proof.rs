//! Whether a packet's identities are proven, and its session stands.

use handfast_layout::{
    ANNOUNCED_CONFIRMED, ANNOUNCED_SENT, AUTH_AUDIT, AUTH_DISABLED, AUTH_REQUIRED, Addr,
    AnnouncedKey, AuthKey, Connection, PEER_SELF, REMOTE_REFUSED, Reason, SESSION_CUT,
    SESSION_PENDING, SESSION_READY,
};

use crate::{
    maps::{ANNOUNCED, AUTH, IDENTITIES, LOCALS, REMOTES, SESSIONS},
    work::Work,
};

// SAFETY of the map reads below: values are copied field by field; an entry that the agent
// replaces meanwhile is replaced as a whole, and one that it removes stays readable for this run.

/// Whose a local address is.
#[inline(always)]
pub fn local(work: &mut Work, addr: Addr) -> Result<(), Reason> {
    match unsafe { LOCALS.get(&addr) } {
        Some(local) if local.endpoint != 0 => {
            work.endpoint = local.endpoint;
            work.local_identity = local.identity;
            Ok(())
        }
        _ => Err(Reason::NoEndpoint),
    }
}

/// Whether the session with the address's node stands, the address was announced in it, and ours
/// was announced there and confirmed.
#[inline(always)]
pub fn session(work: &mut Work, local: Addr, remote: Addr) -> Result<(), Reason> {
    let peer = match work.prefix(remote) {
        Some(peer) if peer != PEER_SELF => peer,
        _ => return Err(Reason::NotManaged),
    };
    work.peer = peer;
    let entry = unsafe { REMOTES.get(&remote) };
    if let Some(entry) = entry
        && entry.flags & REMOTE_REFUSED != 0
        && entry.expires > work.now()
    {
        return Err(Reason::RemoteRefused);
    }
    let Some(session) = (unsafe { SESSIONS.get(&peer) }) else {
        return Err(Reason::NoSession);
    };
    match session.state {
        SESSION_READY => {}
        SESSION_PENDING => return Err(Reason::SessionPending),
        SESSION_CUT => return Err(Reason::SessionCut),
        _ => return Err(Reason::NoSession),
    }
    if session.expiry <= work.now() {
        return Err(Reason::SessionExpired);
    }
    work.oldest = session.oldest;
    work.current = session.current;

    let Some(entry) = entry else {
        return Err(Reason::RemoteUnknown);
    };
    if entry.flags & REMOTE_REFUSED != 0 {
        return Err(Reason::RemoteUnknown);
    }
    if entry.peer != peer {
        return Err(Reason::RemoteElsewhere);
    }
    work.remote_identity = entry.identity;
    work.epoch = entry.epoch;
    if entry.epoch < work.oldest {
        return Err(Reason::EpochStale);
    }
    if entry.epoch > work.current {
        return Err(Reason::SessionPending);
    }

    work.announced = AnnouncedKey { local, peer };
    let Some(announced) = (unsafe { ANNOUNCED.get(&work.announced) }) else {
        return Err(Reason::NotAnnounced);
    };
    if announced.endpoint != work.endpoint {
        return Err(Reason::AnnouncedOther);
    }
    match announced.state {
        ANNOUNCED_CONFIRMED if announced.epoch < work.oldest => Err(Reason::NotAnnounced),
        ANNOUNCED_CONFIRMED => Ok(()),
        ANNOUNCED_SENT => Err(Reason::Unconfirmed),
        _ => Err(Reason::Withdrawing),
    }
}

/// Whether a flow that was let through before still stands by its session and its pair: for packets of a flow
/// neither whose ends nor whose identities have changed since. `false` says only that it takes a longer look.
#[inline(always)]
pub fn stands(work: &mut Work, connection: &Connection) -> bool {
    let now = work.now();
    let Some(session) = (unsafe { SESSIONS.get(&connection.peer) }) else {
        return false;
    };
    let ready = session.state == SESSION_READY
        && session.expiry > now
        && connection.epoch >= session.oldest
        && connection.epoch <= session.current;
    if !ready {
        return false;
    }
    work.oldest = session.oldest;
    work.current = session.current;
    work.endpoint = connection.endpoint;
    work.local_identity = connection.local;
    work.remote_identity = connection.remote;
    work.peer = connection.peer;
    work.epoch = connection.epoch;
    work.valid_until = connection.valid_until;
    match connection.auth {
        AUTH_REQUIRED => connection.valid_until > now && recorded(work).is_ok(),
        AUTH_DISABLED => true,
        _ => false,
    }
}

/// Revocation cuts whatever a rule says.
#[inline(always)]
pub fn revoked(work: &Work) -> Result<(), Reason> {
    if is_revoked(work.local_identity) || is_revoked(work.remote_identity) {
        return Err(Reason::IdentityRevoked);
    }
    Ok(())
}

#[inline(always)]
fn is_revoked(identity: u32) -> bool {
    matches!(unsafe { IDENTITIES.get(&identity) }, Some(entry) if entry.revoked != 0)
}

/// What a rule's mode asks for. `Ok(true)`: nothing is missing; `Ok(false)`: the proof is, and the
/// rule only wants to know.
#[inline(always)]
pub fn required(work: &mut Work, auth: u8) -> Result<bool, Reason> {
    match auth {
        AUTH_DISABLED => Ok(true),
        AUTH_REQUIRED => pair(work).map(|()| true),
        AUTH_AUDIT => Ok(pair(work).is_ok()),
        _ => Err(Reason::TestFail),
    }
}

#[inline(always)]
fn pair(work: &mut Work) -> Result<(), Reason> {
    recorded(work)?;
    let now = work.now();
    let (local, remote) = (
        valid_until(work.local_identity)?,
        valid_until(work.remote_identity)?,
    );
    work.valid_until = if local < remote { local } else { remote };
    match work.valid_until > now {
        true => Ok(()),
        false => Err(Reason::IdentityExpired),
    }
}

/// Whether the pair is there, has not expired, and is of an epoch that counts.
#[inline(always)]
fn recorded(work: &mut Work) -> Result<(), Reason> {
    work.auth = AuthKey::new(work.local_identity, work.remote_identity, work.peer);
    let Some(auth) = (unsafe { AUTH.get(&work.auth) }) else {
        return Err(Reason::NoPair);
    };
    if auth.expiry <= work.now() {
        return Err(Reason::PairExpired);
    }
    if work.peer != PEER_SELF && (auth.epoch < work.oldest || auth.epoch > work.current) {
        return Err(Reason::NoPair);
    }
    Ok(())
}

/// Until when an identity's proof holds.
#[inline(always)]
fn valid_until(identity: u32) -> Result<u64, Reason> {
    match unsafe { IDENTITIES.get(&identity) } {
        Some(entry) if entry.revoked != 0 => Err(Reason::IdentityRevoked),
        Some(entry) => Ok(entry.valid_until),
        None => Err(Reason::IdentityExpired),
    }
}
