//! The judgement between two endpoints of this node: both policies, and a pair with no peer.
//!
//! The flow is kept as the endpoint that was called sees it, so its replies are found on that
//! endpoint's own interface, where their addresses are true.

use handfast_layout::{Addr, Config, Connection, EGRESS, EventKind, INGRESS, Reason, packet::Kind};

use crate::{
    flow, hold,
    maps::LOCALS,
    policy::{self, Allowed},
    proof, report,
    skb::Skb,
    work::Work,
};

/// A packet from one endpoint's address to the endpoint that `work` is about.
#[inline(always)]
pub fn judge(
    skb: &Skb,
    work: &mut Work,
    config: &Config,
    source: u32,
    remote: Addr,
) -> Result<(), Reason> {
    proof::revoked(work)?;
    let about_a_flow = work.packet.kind == Kind::IcmpError;
    let connection = flow::known(work);
    match connection {
        Some(connection) => {
            refresh(work, config, source, connection)?;
            if !proof::required(work, connection.auth)? {
                report::count(Reason::Audited);
            }
            if hold::queued(work, remote) {
                return Err(Reason::Held);
            }
            flow::touch(work, connection);
            Ok(())
        }
        None if about_a_flow => Err(Reason::IcmpNoFlow),
        None => {
            let icmp = work.packet.icmp_type;
            let allowed = ask(work, source, icmp)?;
            let proven = proof::required(work, allowed.auth)?;
            if hold::queued(work, remote) {
                return Err(Reason::Held);
            }
            flow::open(skb, work, config, allowed)?;
            if !proven {
                report::count(Reason::Audited);
                report::event(skb, work, config, EventKind::Audited, Reason::NoPair);
            }
            Ok(())
        }
    }
}

/// A packet from a host endpoint's address, which no from-endpoint has seen: whether it is a reply of that endpoint's.
/// Otherwise `work` is about the destination's again, and knows the other's identity. Not inlined: its stack is free again.
#[inline(never)]
pub fn reply_of_host(work: &mut Work, config: &Config) -> Result<bool, Reason> {
    let (source, destination, direction) = (work.packet.src, work.packet.dst, work.direction);
    proof::local(work, source)?;
    let identity = work.local_identity;
    work.set_key(true);
    if work.key.local != source {
        return Err(Reason::IcmpNoFlow);
    }
    work.direction = EGRESS;
    let known = reply(work, config, destination);
    work.direction = direction;
    if known? {
        return Ok(true);
    }
    proof::local(work, destination)?;
    work.remote_identity = identity;
    work.set_key(false);
    Ok(false)
}

/// A packet of the called endpoint back to the caller. Whether it belongs to a flow that is known.
#[inline(always)]
pub fn reply(work: &mut Work, config: &Config, remote: Addr) -> Result<bool, Reason> {
    // SAFETY: two integers, read once.
    let Some(other) = (unsafe { LOCALS.get(&remote) }) else {
        return Ok(false);
    };
    work.remote_identity = other.identity;
    let source = other.endpoint;
    let Some(connection) = flow::known(work) else {
        return Ok(false);
    };
    proof::revoked(work)?;
    refresh(work, config, source, connection)?;
    proof::required(work, connection.auth)?;
    flow::touch(work, connection);
    Ok(true)
}

#[inline(always)]
fn refresh(
    work: &mut Work,
    config: &Config,
    source: u32,
    connection: &mut Connection,
) -> Result<(), Reason> {
    work.rule = connection.rule;
    if connection.policy_revision != config.policy_revision {
        let allowed = ask(work, source, connection.icmp_type)?;
        connection.rule = allowed.rule;
        connection.auth = allowed.auth;
        connection.policy_revision = config.policy_revision;
    }
    Ok(())
}

/// Both policies: out of the caller, into the called.
#[inline(always)]
fn ask(work: &mut Work, source: u32, icmp: u8) -> Result<Allowed, Reason> {
    let (endpoint, called, caller) = (work.endpoint, work.local_identity, work.remote_identity);
    let out = policy::ask(work, source, called, EGRESS, INGRESS, icmp)?;
    let into = policy::ask(work, endpoint, caller, INGRESS, INGRESS, icmp)?;
    Ok(into.and(out))
}
