//! How large a packet in the tunnel may be: what the underlay carries, less what goes around it.

use std::net::IpAddr;

use crate::Error;
use crate::netlink::Netlink;

/// Bytes around a packet: IPv6 (40), UDP (8), WireGuard's data header and tag (32). Over IPv4 20 stay unused,
/// so that a peer that is reached over both families has one MTU.
const AROUND: u32 = 80;
/// What IPv6 demands of every link (RFC 8200 section 5).
const LEAST: u32 = 1280;

/// The MTU that fits every one of the underlay addresses (this node's or its peers') that there is a way to; an error if there is
/// one to none of them.
pub(crate) async fn fitting(
    netlink: &Netlink,
    underlay: &[IpAddr],
    mark: u32,
) -> Result<u32, Error> {
    let mut narrowest: Option<(String, u32)> = None;
    let targets: Vec<Option<IpAddr>> = match underlay {
        [] => vec![None],
        addresses => addresses.iter().copied().map(Some).collect(),
    };
    let mut unreached = None;
    for target in targets {
        let (link, mtu) = match netlink.path(target, mark).await {
            Ok(path) => path,
            // One family may be missing here, or be away for a while: the others tell.
            Err(error @ Error::NoRoute(_)) => {
                unreached.get_or_insert(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        if narrowest.as_ref().is_none_or(|(_, least)| mtu < *least) {
            narrowest = Some((link.name, mtu));
        }
    }
    if let (None, Some(error)) = (&narrowest, unreached) {
        return Err(error);
    }
    let (device, mtu) = narrowest.unwrap_or_default();
    inside(&device, mtu)
}

/// The MTU inside a tunnel over `device`.
fn inside(device: &str, mtu: u32) -> Result<u32, Error> {
    match mtu.checked_sub(AROUND) {
        Some(inside) if inside >= LEAST => Ok(inside),
        _ => Err(Error::MtuTooSmall {
            device: device.to_owned(),
            mtu,
            need: LEAST + AROUND,
        }),
    }
}

/// Checks an MTU that was set by hand.
pub(crate) fn chosen(mtu: u32) -> Result<u32, Error> {
    inside("(as set)", mtu.saturating_add(AROUND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ethernet_underlay_leaves_1420() {
        assert_eq!(inside("eth0", 1500).unwrap(), 1420);
        assert_eq!(inside("eth0", 1360).unwrap(), 1280);
    }

    #[test]
    fn an_underlay_too_small_for_ipv6_is_named() {
        let error = inside("ppp0", 1359).unwrap_err().to_string();
        assert!(
            error.contains("ppp0") && error.contains("1359") && error.contains("1360"),
            "{error}"
        );
        assert!(inside("ppp0", 10).is_err());
    }

    #[test]
    fn an_mtu_set_by_hand_is_checked_too() {
        assert_eq!(chosen(1300).unwrap(), 1300);
        assert!(chosen(1200).is_err());
    }
}
