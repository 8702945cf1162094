//! What this host can do, asked without leaving a trace. For `handfast check` and for errors that help.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use crate::netlink::Netlink;
use crate::wireguard::daemon;
use crate::{Error, nat};

/// A device that exists for a moment only.
const TRIAL: &str = "hf-probe0";

/// Whether the kernel has WireGuard, found by making a device and taking it away (this loads a module as
/// using it would). Needs root.
pub async fn kernel_wireguard() -> Result<bool, Error> {
    let netlink = Netlink::open()?;
    match netlink.add_wireguard(TRIAL).await {
        Ok(()) => {
            if let Some(link) = netlink.link(TRIAL).await? {
                netlink.delete(link.index).await?;
            }
            Ok(true)
        }
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        // Left by a probe that was interrupted, or another one's at this moment.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            let link = netlink.link(TRIAL).await?;
            if let Some(link) = link {
                netlink.delete(link.index).await?;
            }
            Ok(true)
        }
        Err(source) => Err(Error::Netlink {
            doing: "asking the kernel for WireGuard".to_owned(),
            source,
        }),
    }
}

/// Whether the kernel has what IPsec needs (XFRM devices, ESP over both families, AES-GCM); the error names what
/// is missing. Found by making and removing; needs root.
pub async fn ipsec() -> Result<(), Error> {
    crate::ipsec::probe(&Netlink::open()?, "hf-probe1").await
}

/// Names of this host's netkit devices, on which programs run elsewhere than on tc's hooks.
pub async fn netkit() -> Result<Vec<String>, Error> {
    Netlink::open()?.netkit().await
}

/// The userspace implementation that would be used: `chosen`, else WG_USERSPACE_IMPLEMENTATION, else
/// `wireguard-go`.
pub fn implementation(chosen: Option<&Path>) -> Result<PathBuf, Error> {
    daemon::implementation(chosen)
}

/// Whether /dev/net/tun can be opened, which a userspace implementation needs (and the hold device).
pub fn tun() -> Result<(), Error> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    opened.map(drop).map_err(Error::NoTun)
}

/// The `nft` program.
pub fn nft() -> Result<PathBuf, Error> {
    nat::program()
}
