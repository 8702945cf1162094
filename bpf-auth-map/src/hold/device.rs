//! The TAP that held packets come out of and go back into.
//!
//! It carries the virtio net header and takes checksum and segmentation offloads, so that a packet
//! goes through it in one piece. It is persistent: if the agent dies, its index stays taken, so
//! that no gate sends a held packet to whoever would get that index next.

use std::{
    fs,
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

use tokio::io::unix::AsyncFd;

use super::frame::{Frame, Held, VNET_LEN};
use crate::{Error, link};

// linux/if_tun.h
nix::ioctl_write_ptr_bad!(set_iff, nix::request_code_write!(b'T', 202, 4), libc::ifreq);
nix::ioctl_write_int_bad!(set_persist, nix::request_code_write!(b'T', 203, 4));
nix::ioctl_write_int_bad!(set_offload, nix::request_code_write!(b'T', 208, 4));
const TUN_F_CSUM: i32 = 0x01;
const TUN_F_TSO4: i32 = 0x02;
const TUN_F_TSO6: i32 = 0x04;
const TUN_F_TSO_ECN: i32 = 0x08;
const TUN_F_USO4: i32 = 0x20;
const TUN_F_USO6: i32 = 0x40;

/// The device's queue: more than may be held in all, so that it never fills.
const QUEUE: i32 = 16_384;
/// The largest packet that the kernel hands over in one piece, and our headers.
const BUFFER: usize = 65_536 + 64 + VNET_LEN;

/// The hold device.
#[derive(Debug)]
pub struct HoldDevice {
    file: AsyncFd<fs::File>,
    index: u32,
    buffer: Box<[u8]>,
}

impl HoldDevice {
    /// Makes the device, or takes over the one of this name that an earlier agent left. It has no
    /// address and no IPv6. To be attached ([`Kernel::attach_hold`](crate::Kernel::attach_hold))
    /// before its index goes into the settings.
    ///
    /// # Errors
    /// No /dev/net/tun, the name taken by something else or in use, or not in a tokio runtime.
    pub fn open(name: &str) -> Result<Self, Error> {
        let error = |what: &str| {
            let what = format!("hold device {name}: {what}");
            move |source: io::Error| Error::io(what, source)
        };
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(error("opening /dev/net/tun"))?;
        let mut request = link::request(name)?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        let fd = file.as_raw_fd();
        // SAFETY: the descriptor is open, and the request is a whole `ifreq`.
        unsafe { set_iff(fd, &request) }.map_err(|errno| error("making it")(errno.into()))?;
        // SAFETY: as above; these calls take an integer.
        unsafe { set_persist(fd, 1) }.map_err(|errno| error("keeping it")(errno.into()))?;
        offloads(fd).map_err(error("offloads"))?;
        quiet(name).map_err(error("switching IPv6 off"))?;
        set(name, libc::SIOCSIFTXQLEN, |value| value.ifru_metric = QUEUE)
            .map_err(error("its queue"))?;
        set(name, libc::SIOCSIFFLAGS, |value| {
            value.ifru_flags = (libc::IFF_UP | libc::IFF_NOARP) as libc::c_short;
        })
        .map_err(error("bringing it up"))?;
        let index = nix::net::if_::if_nametoindex(name)
            .map_err(|errno| error("its index")(errno.into()))?;
        // SAFETY: the file owns its descriptor, and nothing here exchanges it.
        let file = unsafe { AsyncFd::register(file) }
            .map_err(|failed| error("waiting for it")(failed.into()))?;
        Ok(Self {
            file,
            index,
            buffer: vec![0; BUFFER].into(),
        })
    }

    /// Its interface index.
    pub fn ifindex(&self) -> u32 {
        self.index
    }

    /// The next held packet. Safe to cancel.
    ///
    /// # Errors
    /// The device is gone.
    pub async fn receive(&mut self) -> Result<Held, Error> {
        let error = |source| Error::io("reading the hold device", source);
        loop {
            let mut ready = self.file.readable().await.map_err(error)?;
            let buffer = &mut self.buffer;
            let read = ready.try_io(|file| file.get_ref().read(buffer));
            let length = match read {
                Ok(Ok(length)) => length,
                Ok(Err(source)) => return Err(error(source)),
                Err(_) => continue,
            };
            match Frame::parse(self.buffer.get(..length).unwrap_or_default()) {
                Ok(frame) => return Ok(frame.keep()),
                // The egress program lets nothing else through: only the device's own noise
                // before it is attached.
                Err(why) => tracing::debug!(%why, length, "not a held packet"),
            }
        }
    }

    /// Gives a packet back to the hook that it was taken from.
    ///
    /// # Errors
    /// The device is gone, or the kernel has no memory.
    pub fn give_back(&self, held: &Held) -> Result<(), Error> {
        self.write(held.frame())
    }

    /// Has a packet un-counted and dropped.
    ///
    /// # Errors
    /// As [`HoldDevice::give_back`].
    pub fn discard(&self, held: &Held) -> Result<(), Error> {
        self.write(&held.refusal())
    }

    /// A TAP takes a whole frame or none, and does not block.
    fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        nix::unistd::write(self.file.get_ref(), bytes)
            .map(drop)
            .map_err(|errno| Error::io("writing to the hold device", errno.into()))
    }

    /// Refuses where a device of this name is in use, or no TAP; changes nothing.
    ///
    /// # Errors
    /// As those of [`HoldDevice::remove`].
    pub fn refuse_foreign(name: &str) -> Result<(), Error> {
        let error = |source: io::Error| Error::io(format!("the hold device {name}"), source);
        // Dropped, it leaves the device, which is persistent.
        Self::take_over(name).map(drop).map_err(error)
    }

    /// Removes the device of this name: for good, at detach.
    ///
    /// # Errors
    /// It is in use, or not a TAP of ours.
    pub fn remove(name: &str) -> Result<(), Error> {
        let error =
            |source: io::Error| Error::io(format!("removing the hold device {name}"), source);
        let Some(file) = Self::take_over(name).map_err(error)? else {
            return Ok(());
        };
        // SAFETY: as in `open`.
        unsafe { set_persist(file.as_raw_fd(), 0) }.map_err(|errno| error(errno.into()))?;
        Ok(())
    }

    /// The TAP of this name that nobody reads, if there is a device of this name.
    fn take_over(name: &str) -> io::Result<Option<fs::File>> {
        if nix::net::if_::if_nametoindex(name).is_err() {
            return Ok(None);
        }
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")?;
        let mut request = link::request(name).map_err(io::Error::other)?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: as in `open`.
        match unsafe { set_iff(file.as_raw_fd(), &request) } {
            Ok(_) => Ok(Some(file)),
            Err(nix::errno::Errno::EINVAL) => Err(io::Error::other(
                "a device of another kind has this name; it is not handfast's",
            )),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// UDP segmentation came with 6.2; without it a UDP super-packet is cut up on its way in.
fn offloads(fd: i32) -> io::Result<()> {
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    // SAFETY: the descriptor is open; the call takes an integer.
    unsafe { set_offload(fd, tcp | TUN_F_USO4 | TUN_F_USO6).or_else(|_| set_offload(fd, tcp)) }?;
    Ok(())
}

/// No address by itself, no solicitations.
fn quiet(name: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn set(
    name: &str,
    what: libc::c_ulong,
    fill: impl FnOnce(&mut libc::__c_anonymous_ifr_ifru),
) -> io::Result<()> {
    let mut request = link::request(name).map_err(io::Error::other)?;
    fill(&mut request.ifr_ifru);
    link::control(what, &mut request)
}
