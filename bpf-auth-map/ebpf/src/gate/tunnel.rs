//! The judgement of both tunnel gates: session, addresses, policy, pair, in this order.

use handfast_layout::{Addr, Config, EGRESS, EventKind, Reason, packet::Kind};

use crate::{flow, hold, policy, proof, report, skb::Skb, work::Work};

/// Judges a packet between an endpoint here and an address of another node.
#[inline(always)]
pub fn judge(skb: &Skb, work: &mut Work, config: &Config) -> Result<(), Reason> {
    let outward = work.direction == EGRESS;
    let (local, remote) = ends(work, outward);
    work.set_key(outward);
    if established(work, config, remote) {
        return Ok(());
    }
    proof::local(work, local)?;
    proof::session(work, local, remote)?;
    proof::revoked(work)?;
    flow::fragments(work)?;
    work.set_key(outward);

    let connection = flow::known(work);
    let about_a_flow = work.packet.kind == Kind::IcmpError;
    if about_a_flow && (work.key.local != local || work.key.remote != remote) {
        return Err(Reason::IcmpNoFlow);
    }
    match connection {
        Some(connection) => {
            work.rule = connection.rule;
            if connection.policy_revision != config.policy_revision {
                let (endpoint, remote, opened) =
                    (work.endpoint, work.remote_identity, connection.direction);
                let icmp = connection.icmp_type;
                let allowed = policy::ask(work, endpoint, remote, opened, opened, icmp)?;
                connection.rule = allowed.rule;
                connection.auth = allowed.auth;
                connection.policy_revision = config.policy_revision;
            }
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
            let (endpoint, identity, direction) =
                (work.endpoint, work.remote_identity, work.direction);
            let icmp = work.packet.icmp_type;
            let allowed = policy::ask(work, endpoint, identity, direction, direction, icmp)?;
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

/// The short way, of nearly every packet: a flow that is known, neither policy nor any address has changed since
/// its last packet, and session, identities and pair stand. Whatever is missing, the long way finds and names.
#[inline(always)]
fn established(work: &mut Work, config: &Config, remote: Addr) -> bool {
    if work.packet.kind != Kind::Plain {
        return false;
    }
    let Some(connection) = flow::unchanged(work, config) else {
        return false;
    };
    if !proof::stands(work, connection) || hold::queued(work, remote) {
        return false;
    }
    work.rule = connection.rule;
    flow::touch(work, connection);
    true
}

#[inline(always)]
fn ends(work: &Work, outward: bool) -> (Addr, Addr) {
    if outward {
        (work.packet.src, work.packet.dst)
    } else {
        (work.packet.dst, work.packet.src)
    }
}
