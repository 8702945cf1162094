//! What runs on a hook by clsact, in its order. The kernel tells by netlink only (rtnetlink(7), linux/pkt_cls.h), and of filters of
//! one preference it runs the one first that was added last.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use aya::programs::TcAttachType;
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
        sockopt::ReceiveTimeout,
    },
    time::TimeVal,
};

/// A filter of the first preference. No other can come before ours: the kernel takes none of another kind beside it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Its handle.
    pub(crate) handle: u32,
    /// What its program is called, as its owner told the kernel.
    pub(crate) name: Option<String>,
}

/// The kernel answers at once; a socket that does not is broken.
const PATIENCE: TimeVal = TimeVal::new(2, 0);
/// The longest part of a listing that the kernel sends.
const PART: usize = 32 << 10;
const HEADER: usize = 16;
/// `struct tcmsg`.
const MESSAGE: usize = 20;
const ATTRIBUTE: usize = 4;

/// The filters of the first preference on a hook, in the order in which they run; none where there is no clsact.
pub(crate) fn list(ifindex: u32, direction: TcAttachType) -> io::Result<Vec<Filter>> {
    let socket = ask(ifindex, direction)?;
    let mut found = Vec::new();
    let mut part = vec![0; PART];
    loop {
        let length = recv(socket.as_raw_fd(), &mut part, MsgFlags::empty())?;
        let whole = part.get(..length).unwrap_or_default();
        if read(whole, &mut found)? {
            return Ok(found);
        }
    }
}

fn ask(ifindex: u32, direction: TcAttachType) -> io::Result<OwnedFd> {
    // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or TC_H_MIN_EGRESS)
    let parent: u32 = match direction {
        TcAttachType::Ingress => 0xffff_fff2,
        _ => 0xffff_fff3,
    };
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    setsockopt(&socket, ReceiveTimeout, &PATIENCE)?;
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    let flags = u16::try_from(flags).map_err(io::Error::other)?;
    let length = u32::try_from(HEADER + MESSAGE).map_err(io::Error::other)?;
    // struct nlmsghdr: length, kind and flags, a number, who asks; struct tcmsg: family, device, handle, parent, preference.
    let mut request = length.to_ne_bytes().to_vec();
    for half in [libc::RTM_GETTFILTER, flags] {
        request.extend(half.to_ne_bytes());
    }
    for word in [1, 0, 0, ifindex, 0, parent, 0_u32] {
        request.extend(word.to_ne_bytes());
    }
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    Ok(socket)
}

/// Takes over what a part of a listing names. True at its end.
pub(crate) fn read(mut part: &[u8], found: &mut Vec<Filter>) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (word(part, 0), half(part, 4)) {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        if length < HEADER {
            break;
        }
        let Some(body) = part.get(HEADER..length) else {
            break;
        };
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let errno = word(body, 0).unwrap_or_default().cast_signed();
                return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
            }
            _ if kind == libc::RTM_NEWTFILTER => found.extend(filter(body)),
            _ => {}
        }
        part = part.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// A filter of chain 0 and the first preference; none for others, and for what only announces a preference.
fn filter(body: &[u8]) -> Option<Filter> {
    const CHAIN: u16 = 11;
    const OPTIONS: u16 = 2;
    const NAME: u16 = 7;
    let (handle, preference) = (word(body, 8)?, word(body, 16)? >> 16);
    let attributes = body.get(MESSAGE..)?;
    let chain = attribute(attributes, CHAIN).and_then(|value| word(value, 0));
    if handle == 0 || preference != 1 || chain.is_some_and(|chain| chain != 0) {
        return None;
    }
    let options = attribute(attributes, OPTIONS).unwrap_or_default();
    let name = attribute(options, NAME).map(|name| {
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    });
    Some(Filter { handle, name })
}

/// The value of the first attribute of a type (`struct rtattr`).
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// NLA_F_NESTED and NLA_F_NET_BYTEORDER.
    const FLAGS: u16 = 0xc000;
    loop {
        let (length, kind) = (usize::from(half(attributes, 0)?), half(attributes, 2)?);
        let value = attributes.get(ATTRIBUTE..length)?;
        if kind & !FLAGS == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}
