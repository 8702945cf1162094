//! An interface, as far as a gate has to know it.

use std::{io, mem, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::Error;

/// Length of an Ethernet header.
const ETHERNET: u32 = 14;

/// An interface of this network namespace.
#[derive(Debug)]
pub(crate) struct Interface {
    /// Its index.
    pub(crate) index: u32,
    /// Its name, now.
    pub(crate) name: String,
    /// Length of the link header of its packets: 14 or 0.
    pub(crate) header_len: u32,
}

impl Interface {
    /// Finds it.
    pub(crate) fn find(index: u32) -> Result<Self, Error> {
        let name = nix::net::if_::if_indextoname(index).map_err(|_| Error::NoInterface(index))?;
        let name = name.into_string().map_err(|_| Error::NoInterface(index))?;
        let mut request = request(&name)?;
        control(libc::SIOCGIFHWADDR, &mut request)
            .map_err(|source| Error::io(format!("asking for the kind of {name}"), source))?;
        // SAFETY: the call above filled this member.
        let kind = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
        let header_len = match kind {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => ETHERNET,
            _ => 0,
        };
        Ok(Self {
            index,
            name,
            header_len,
        })
    }
}

/// An empty request about an interface.
pub(crate) fn request(name: &str) -> Result<libc::ifreq, Error> {
    // SAFETY: all zeros is an empty name and an empty answer.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(Error::Setting("an interface name has 1 to 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

/// Asks or tells the kernel something about an interface of this namespace.
pub(crate) fn control(what: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: every request used here reads and writes one `ifreq`.
    match unsafe { libc::ioctl(socket.as_raw_fd(), what as _, request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
