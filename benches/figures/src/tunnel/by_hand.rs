//! The same tunnel without handfast: WireGuard as `wg` sets it up, ESP as `ip xfrm` does.

use std::net::IpAddr;

use anyhow::Result;

use super::Kind;
use super::stream;
use crate::bare::Bare;
use crate::harness::lab::{Host, Lab, Workload, underlay};

/// Both ends. What is dropped first ends first.
pub struct ByHand {
    pub client: Workload,
    pub server: Workload,
    pub address: String,
    _rest: Rest,
}

#[allow(dead_code, reason = "held so that it lives")]
enum Rest {
    WireGuard(crate::bare::Held),
    Esp([Host; 2]),
}

impl ByHand {
    pub fn start(lab: &Lab, kind: Kind) -> Result<Self> {
        match kind {
            Kind::WireGuard | Kind::Userspace => {
                let (client, server, address, held) = Bare::start(lab)?.into_parts();
                Ok(Self {
                    client,
                    server,
                    address: address.to_string(),
                    _rest: Rest::WireGuard(held),
                })
            }
            Kind::Ipsec => esp(lab),
        }
    }
}

const NUMBERS: [u8; 2] = [23, 24];
/// AES-256-GCM with a salt, the same both ways: nobody else hears it.
const KEY: &str = "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223";

fn esp(lab: &Lab) -> Result<ByHand> {
    let one = End::start(lab, NUMBERS[0])?;
    let two = End::start(lab, NUMBERS[1])?;
    one.meet(&two)?;
    two.meet(&one)?;
    stream::reach(&one.workload, &two.address)?;
    Ok(ByHand {
        client: one.workload,
        server: two.workload,
        address: two.address,
        _rest: Rest::Esp([one.host, two.host]),
    })
}

struct End {
    host: Host,
    workload: Workload,
    number: u8,
    underlay: IpAddr,
    address: String,
}

impl End {
    fn start(lab: &Lab, number: u8) -> Result<Self> {
        let host = lab.host(&format!("x{number}"), number)?;
        let workload = lab.workload(&format!("y{number}"))?;
        let address = format!("10.78.{number}.2");
        let inside = workload.ns.name();
        for line in [
            format!("link add to-w type veth peer name eth0 netns {inside}"),
            format!("addr add 10.78.{number}.1/24 dev to-w"),
            "link set to-w up".to_owned(),
            "link add x0 type xfrm if_id 99".to_owned(),
            "link set x0 mtu 1420 up".to_owned(),
        ] {
            host.ns.ip(&line)?;
        }
        for line in [
            format!("addr add {address}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add default via 10.78.{number}.1 mtu 1420"),
        ] {
            workload.ns.ip(&line)?;
        }
        let [v4, _] = underlay(number);
        Ok(Self {
            host,
            workload,
            number,
            underlay: v4,
            address,
        })
    }

    fn meet(&self, other: &Self) -> Result<()> {
        let (us, them) = (self.underlay, other.underlay);
        let range = |number: u8| format!("10.78.{number}.0/24");
        let (near, far) = (range(self.number), range(other.number));
        // As handfast's own: tunnel mode, ESN, a replay window.
        let state = "reqid 1 mode tunnel replay-window 1024 if_id 99 flag esn";
        let cipher = format!("aead rfc4106(gcm(aes)) {KEY} 128");
        for (source, target, spi) in [(us, them, self.number), (them, us, other.number)] {
            self.host.ns.ip(&format!(
                "xfrm state add src {source} dst {target} proto esp spi 0x10{spi} {state} {cipher}"
            ))?;
        }
        for (source, target, from, to, way) in [
            (&near, &far, us, them, "out"),
            (&far, &near, them, us, "in"),
            (&far, &near, them, us, "fwd"),
        ] {
            self.host.ns.ip(&format!(
                "xfrm policy add src {source} dst {target} dir {way} if_id 99 \
                 tmpl src {from} dst {to} proto esp reqid 1 mode tunnel"
            ))?;
        }
        self.host.ns.ip(&format!("route add {far} dev x0"))
    }
}
