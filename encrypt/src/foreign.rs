//! The readers of foreign bytes, for those who try to break them (`fuzz/`): what the kernel's netlink sockets and a userspace
//! WireGuard answer.
//!
//! Nothing else calls these; they are the very functions that the tunnels read answers with.

use netlink_packet_xfrm::XfrmMessage;
use netlink_packet_xfrm::constants::{XFRM_MSG_NEWPOLICY, XFRM_MSG_NEWSA};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;

use crate::netlink::Link;
use crate::{ipsec, route, wireguard};

/// What an answer about links or routes says of something of ours, in words; none if it says nothing of it.
#[must_use]
pub fn routing(answer: &[u8]) -> Option<String> {
    match NetlinkMessage::deserialize(answer).ok()?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            Some(format!("{:?}", Link::from(link)))
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(message)) => {
            route::read(&message).map(|route| format!("{route:?}"))
        }
        _ => None,
    }
}

/// What an answer says of associations and policies of the device with this interface id.
///
/// The library's reader wants the fixed part of an answer to be whole, as the kernel sends it; other answers than those that
/// we ask for, and shorter ones, are left out.
#[must_use]
pub fn transformations(answer: &[u8], interface: u32) -> Option<String> {
    let length = answer
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes))?;
    let kind = answer.get(4..6)?.try_into().ok().map(u16::from_ne_bytes)?;
    // struct nlmsghdr with struct xfrm_usersa_info or xfrm_userpolicy_info.
    let least = match kind {
        XFRM_MSG_NEWSA => 16 + 224,
        XFRM_MSG_NEWPOLICY => 16 + 168,
        _ => return None,
    };
    if length < least || answer.len() < least as usize {
        return None;
    }
    match NetlinkMessage::deserialize(answer).ok()?.payload {
        NetlinkPayload::InnerMessage(XfrmMessage::AddSa(message)) => {
            ipsec::association(&message, interface).map(|found| format!("{found:?}"))
        }
        NetlinkPayload::InnerMessage(XfrmMessage::AddPolicy(message)) => {
            ipsec::policy(&message, interface).map(|found| format!("{found:?}"))
        }
        _ => None,
    }
}

/// How many peers a daemon's answer names; none if it is refused.
#[must_use]
pub fn peers(answer: &[u8]) -> Option<usize> {
    wireguard::peers(answer)
}
