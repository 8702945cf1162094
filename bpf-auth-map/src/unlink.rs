//! Takes a pinned link off its hook at once. Without its pin a link goes too, but only when the kernel comes to it: until then its
//! program would still judge packets that are no longer its business.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

/// Commands of bpf(2).
const OBJ_GET: libc::c_long = 7;
const LINK_DETACH: libc::c_long = 34;

/// Detaches what is pinned there; the pin stays.
pub(crate) fn detach(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    // The address of the path, a descriptor and flags that are not used here.
    let mut which = [path.as_ptr() as u64, 0];
    let fd = bpf(OBJ_GET, &mut which)?;
    // SAFETY: the kernel has just given it to us, and nobody else has it.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut which = [u64::from(link.as_raw_fd().cast_unsigned())];
    bpf(LINK_DETACH, &mut which).map(drop)
}

fn bpf<const N: usize>(command: libc::c_long, attributes: &mut [u64; N]) -> io::Result<RawFd> {
    // SAFETY: what the attributes point to lives in the caller, and the kernel is told how many bytes they are.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            size_of_val(attributes),
        )
    };
    match RawFd::try_from(result) {
        Ok(fd) if fd >= 0 => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}
