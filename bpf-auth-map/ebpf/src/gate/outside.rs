//! The judgement between an endpoint and an address outside the mesh.

use handfast_layout::{AUTH_AUDIT, AUTH_DISABLED, Config, EventKind, Reason, packet::Kind};

use crate::{flow, policy, proof, report, skb::Skb, work::Work};

/// Judges; `work` names the endpoint and the identity of the address.
#[inline(always)]
pub fn judge(skb: &Skb, work: &mut Work, config: &Config) -> Result<(), Reason> {
    proof::revoked(work)?;
    let about_a_flow = work.packet.kind == Kind::IcmpError;
    match flow::alive(work) {
        Some(connection) => {
            work.rule = connection.rule;
            let renamed = connection.remote != work.remote_identity;
            if renamed || connection.policy_revision != config.policy_revision {
                let opened = connection.direction;
                let allowed = ask(work, opened, connection.icmp_type)?;
                connection.remote = work.remote_identity;
                connection.rule = allowed.rule;
                connection.auth = allowed.auth;
                connection.policy_revision = config.policy_revision;
            }
            flow::touch(work, connection);
            Ok(())
        }
        None if about_a_flow => Err(Reason::IcmpNoFlow),
        None => {
            let (direction, icmp) = (work.direction, work.packet.icmp_type);
            let allowed = ask(work, direction, icmp)?;
            flow::open(skb, work, config, allowed)?;
            if allowed.auth == AUTH_AUDIT {
                report::count(Reason::Audited);
                report::event(skb, work, config, EventKind::Audited, Reason::NoIdentity);
            }
            Ok(())
        }
    }
}

/// Policy, where neither proof nor encryption can be had.
#[inline(always)]
fn ask(work: &mut Work, opened: u8, icmp: u8) -> Result<policy::Allowed, Reason> {
    let (endpoint, identity) = (work.endpoint, work.remote_identity);
    let allowed = policy::ask(work, endpoint, identity, opened, opened, icmp)?;
    if allowed.encryption != 0 || !matches!(allowed.auth, AUTH_DISABLED | AUTH_AUDIT) {
        return Err(Reason::NoIdentity);
    }
    Ok(allowed)
}
