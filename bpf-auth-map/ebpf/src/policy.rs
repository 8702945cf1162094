//! What policy says about a flow.

use handfast_layout::{
    AUTH_AUDIT, AUTH_DISABLED, AUTH_REQUIRED, AUTH_TEST_FAIL, EGRESS, IDENTITY_ANY,
    IDENTITY_FIRST_CIDR, IDENTITY_WORLD, LpmKey, POLICY_BITS_PORT, PolicyKey, PolicyValue, Reason,
    VERDICT_ALLOW, VERDICT_DENY, packet,
};

use crate::{maps, work::Work};

/// A rule that lets a flow through, on its conditions.
#[derive(Clone, Copy)]
pub struct Allowed {
    pub rule: u32,
    pub auth: u8,
    pub encryption: u8,
}

impl Allowed {
    /// On the conditions of both: one node, two endpoints, two policies.
    #[inline(always)]
    pub fn and(self, other: Self) -> Self {
        let either = |auth: u8| self.auth == auth || other.auth == auth;
        Self {
            rule: self.rule,
            auth: if either(AUTH_TEST_FAIL) {
                AUTH_TEST_FAIL
            } else if either(AUTH_REQUIRED) {
                AUTH_REQUIRED
            } else if either(AUTH_AUDIT) {
                AUTH_AUDIT
            } else {
                AUTH_DISABLED
            },
            encryption: self.encryption | other.encryption,
        }
    }
}

/// Asks the policy of `endpoint` about `identity`. `work.key` is the flow; whoever opened it (as
/// `work.key.local` sees it) had the other one's port as destination, or sent this type of ICMP. The exact
/// identity's entry decides before the one for all, but a deny in either wins. To an endpoint whose rules name no
/// prefix around it an address outside the mesh is any other: a prefix without entries costs nothing.
#[inline(always)]
pub fn ask(
    work: &mut Work,
    endpoint: u32,
    identity: u32,
    direction: u8,
    opened: u8,
    icmp_type: u8,
) -> Result<Allowed, Reason> {
    let port = match work.key.proto {
        packet::TCP | packet::UDP | packet::UDPLITE | packet::SCTP | packet::DCCP => {
            if opened == EGRESS {
                work.key.remote_port
            } else {
                work.key.local_port
            }
        }
        packet::ICMP | packet::ICMPV6 => u16::from(icmp_type).to_be(),
        _ => 0,
    };
    work.policy = LpmKey {
        prefix_len: POLICY_BITS_PORT,
        data: PolicyKey {
            endpoint,
            identity,
            direction,
            proto: work.key.proto,
            port,
        },
    };
    let exact = maps::policy(&work.policy);
    work.policy.data.identity = if identity >= IDENTITY_FIRST_CIDR {
        IDENTITY_WORLD
    } else {
        IDENTITY_ANY
    };
    let any = maps::policy(&work.policy);
    if let Some(denied) = denies(exact).or(denies(any)) {
        work.rule = denied;
        return Err(Reason::Denied);
    }
    match exact.or(any) {
        Some(value) if value.verdict == VERDICT_ALLOW => {
            work.rule = value.rule;
            Ok(Allowed {
                rule: value.rule,
                auth: value.auth,
                encryption: value.encryption,
            })
        }
        _ => Err(Reason::NoRule),
    }
}

#[inline(always)]
fn denies(value: Option<&PolicyValue>) -> Option<u32> {
    match value {
        Some(value) if value.verdict == VERDICT_DENY => Some(value.rule),
        _ => None,
    }
}
