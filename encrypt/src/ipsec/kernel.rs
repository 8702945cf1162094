//! Security associations and policies of the kernel, through its XFRM netlink socket.
//!
//! Everything of ours carries the interface id of our device, and is told from others' by it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_xfrm::constants::{
    IPPROTO_ESP, XFRM_MODE_TUNNEL, XFRM_POLICY_ALLOW, XFRM_POLICY_FWD, XFRM_POLICY_IN,
    XFRM_POLICY_OUT, XFRM_STATE_AF_UNSPEC, XFRM_STATE_ESN,
};
use netlink_packet_xfrm::policy::ModifyMessage as PolicyMessage;
use netlink_packet_xfrm::state::ModifyMessage as StateMessage;
use netlink_packet_xfrm::{Address, UserTemplate, XfrmAttrs};
use xfrmnetlink::Handle;
use xfrmnetlink::constants::ENC_AEAD_ALG_AES_GCM;
use zeroize::Zeroize;

use super::chain::Material;
use super::options::Lifetime;
use crate::Error;
use crate::nat::Marks;

/// Packets that may overtake one another without being taken for replayed: the kernel's most. Two processors
/// that share a queue were seen to exchange some dozens.
const REPLAY_WINDOW: u32 = 4096;
/// Bits of the integrity check value: all of it (RFC 4106 section 6).
const ICV_BITS: u32 = 128;
/// Our place among policies: after those for packets that were held, which stand at their peer's number.
const PRIORITY: u32 = u32::MAX;

/// The socket. It belongs to the network namespace of the thread that opened it.
pub(super) struct Xfrm {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
    interface: u32,
    marks: Marks,
}

impl Drop for Xfrm {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Where packets of a peer go in the underlay, and the number that its associations and policies share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) local: IpAddr,
    pub(super) remote: IpAddr,
    pub(super) number: u32,
}

/// What an association is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SaId {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) spi: u32,
}

/// An association as the kernel tells it; never its key.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reading {
    /// The peer's number.
    pub(super) number: u32,
    pub(super) bytes: u64,
    pub(super) packets: u64,
    /// Unix seconds; none before the first packet.
    pub(super) used: Option<u64>,
    pub(super) replayed: u64,
    pub(super) forged: u64,
}

/// A policy of ours, as far as it can be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PolicyId {
    pub(super) prefix: IpNet,
    pub(super) way: Way,
}

/// A policy as the kernel tells it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PolicyReading {
    /// The peer's number.
    pub(super) number: u32,
    /// The association that it names, or 0.
    pub(super) spi: u32,
}

/// The kernel's three places of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    In,
    Forward,
    Out,
    /// As `In` and `Forward`, for packets that the gates had held and have judged: what they came out of is
    /// forgotten meanwhile. Known by the gates' mark, and the gate has asked for their association before.
    InHeld,
    ForwardHeld,
}

/// All ways of a peer's prefix.
pub(super) const WAYS: [Way; 5] = [
    Way::In,
    Way::Forward,
    Way::Out,
    Way::InHeld,
    Way::ForwardHeld,
];

impl Way {
    const fn code(self) -> u8 {
        match self {
            Self::In | Self::InHeld => XFRM_POLICY_IN,
            Self::Forward | Self::ForwardHeld => XFRM_POLICY_FWD,
            Self::Out => XFRM_POLICY_OUT,
        }
    }

    const fn is_held(self) -> bool {
        matches!(self, Self::InHeld | Self::ForwardHeld)
    }

    fn of(code: u8, held: bool) -> Option<Self> {
        WAYS.into_iter()
            .find(|way| way.code() == code && way.is_held() == held)
    }
}

impl Xfrm {
    /// Opens the socket; needs a running tokio runtime.
    pub(super) fn open(interface: u32, marks: Marks) -> Result<Self, Error> {
        let (connection, handle, _) =
            xfrmnetlink::new_connection().map_err(Error::io("opening an XFRM socket"))?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
            interface,
            marks,
        })
    }

    /// Installs an association from `source` to `destination`. The material is gone afterwards, however it went.
    pub(super) async fn add(
        &self,
        id: SaId,
        number: u32,
        material: Material,
        life: Lifetime,
        fwmark: u32,
    ) -> Result<(), Error> {
        let mut key = material.key().to_vec();
        let request = self
            .handle
            .state()
            .add(id.source, id.destination)
            .protocol(IPPROTO_ESP)
            .spi(id.spi)
            .mode(XFRM_MODE_TUNNEL)
            .reqid(number)
            .ifid(self.interface)
            // Both families inside; sequence numbers of 64 bits.
            .flags(XFRM_STATE_AF_UNSPEC | XFRM_STATE_ESN)
            .replay_window(REPLAY_WINDOW, 0, 0, 0, 0)
            .output_mark(fwmark, u32::MAX)
            .packet_limit(life.packets / 2, life.packets)
            .byte_limit(life.bytes / 2, life.bytes)
            .time_limit(0, life.seconds)
            .encryption_aead(ENC_AEAD_ALG_AES_GCM, &key, ICV_BITS);
        key.zeroize();
        let added = match request {
            Ok(request) => request.execute().await,
            Err(error) => Err(error),
        };
        added.map_err(|error| match errno(&error).raw_os_error() {
            Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP) => {
                Error::NoIpsec("ESP (modules esp4, esp6)")
            }
            Some(libc::ENOSYS | libc::ENOENT) => Error::NoIpsec("AES-GCM for ESP (module gcm)"),
            Some(libc::EEXIST) => Error::SpiTaken(id.spi),
            _ => refused("installing a security association", &error),
        })
    }

    /// Removes an association; one that is gone already is no error.
    pub(super) async fn delete(&self, id: SaId) -> Result<(), Error> {
        let request = self.handle.state().delete(id.source, id.destination);
        let gone = request.protocol(IPPROTO_ESP).spi(id.spi).execute().await;
        tolerate(gone, "removing a security association")
    }

    /// Our associations.
    pub(super) async fn associations(&self) -> Result<BTreeMap<SaId, Reading>, Error> {
        let answers = self.handle.state().get_dump().execute();
        let messages: Vec<_> = answers
            .try_collect()
            .await
            .map_err(|error| refused("listing security associations", &error))?;
        let ours = messages.iter();
        Ok(ours
            .filter_map(|message| association(message, self.interface))
            .collect())
    }

    /// Makes a policy exactly this, in one step: what has this prefix at its far end goes through this peer's
    /// tunnel, and by no other way. Outward it names the association, so that the kernel has no choice.
    pub(super) async fn set_policy(&self, id: PolicyId, path: Path, spi: u32) -> Result<(), Error> {
        let (source, destination) = selector(id);
        let (outer_source, outer_destination) = match id.way {
            Way::Out => (path.local, path.remote),
            _ => (path.remote, path.local),
        };
        let mut template = UserTemplate {
            family: family(path.remote),
            saddr: Address::from_ip(&outer_source),
            reqid: path.number,
            mode: XFRM_MODE_TUNNEL,
            optional: 0,
            ..UserTemplate::default()
        };
        template.id.daddr = Address::from_ip(&outer_destination);
        template.id.proto = IPPROTO_ESP;
        template.id.spi = spi;
        let request = self.handle.policy().update(
            source.addr(),
            source.prefix_len(),
            destination.addr(),
            destination.prefix_len(),
        );
        let request = request
            .direction(id.way.code())
            .action(XFRM_POLICY_ALLOW)
            .ifid(self.interface);
        let request = if id.way.is_held() {
            let (mark, mask) = self.marks.held();
            request.priority(path.number).mark(mark, mask)
        } else {
            request.priority(PRIORITY).add_template(template)
        };
        request
            .execute()
            .await
            .map_err(|error| refused("setting a policy", &error))
    }

    /// Removes a policy; one that is gone already is no error.
    pub(super) async fn delete_policy(&self, id: PolicyId) -> Result<(), Error> {
        let (source, destination) = selector(id);
        let request = self.handle.policy().delete(
            source.addr(),
            source.prefix_len(),
            destination.addr(),
            destination.prefix_len(),
        );
        let mut request = request.direction(id.way.code()).ifid(self.interface);
        if id.way.is_held() {
            let (mark, mask) = self.marks.held();
            request = request.mark(mark, mask);
        }
        tolerate(request.execute().await, "removing a policy")
    }

    /// Our policies.
    pub(super) async fn policies(&self) -> Result<BTreeMap<PolicyId, PolicyReading>, Error> {
        let answers = self.handle.policy().get_dump().execute();
        let messages: Vec<_> = answers
            .try_collect()
            .await
            .map_err(|error| refused("listing policies", &error))?;
        let ours = messages.iter();
        Ok(ours
            .filter_map(|message| policy(message, self.interface))
            .collect())
    }
}

/// An association of this interface as the kernel tells it; none for what we would not have made.
pub(crate) fn association(message: &StateMessage, interface: u32) -> Option<(SaId, Reading)> {
    let ours = message.nlas.contains(&XfrmAttrs::IfId(interface));
    let info = &message.user_sa_info;
    if !ours || info.id.proto != IPPROTO_ESP {
        return None;
    }
    let id = SaId {
        source: address(&info.saddr, info.family)?,
        destination: address(&info.id.daddr, info.family)?,
        spi: info.id.spi,
    };
    let reading = Reading {
        number: info.reqid,
        bytes: info.lifetime_cur.bytes,
        packets: info.lifetime_cur.packets,
        used: (info.lifetime_cur.use_time > 0).then_some(info.lifetime_cur.use_time),
        replayed: u64::from(info.stats.replay) + u64::from(info.stats.replay_window),
        forged: u64::from(info.stats.integrity_failed),
    };
    Some((id, reading))
}

/// The same of a policy.
pub(crate) fn policy(message: &PolicyMessage, interface: u32) -> Option<(PolicyId, PolicyReading)> {
    if !message.nlas.contains(&XfrmAttrs::IfId(interface)) {
        return None;
    }
    let info = &message.user_policy_info;
    let reading = message.nlas.iter().find_map(|attribute| match attribute {
        XfrmAttrs::Template(templates) => templates.first().map(|first| PolicyReading {
            number: first.reqid,
            spi: first.id.spi,
        }),
        _ => None,
    });
    let held = message
        .nlas
        .iter()
        .any(|attribute| matches!(attribute, XfrmAttrs::Mark(_)));
    let way = Way::of(info.direction, held)?;
    let chosen = &info.selector;
    let (far, bits) = match way {
        Way::Out => (&chosen.daddr, chosen.prefixlen_d),
        _ => (&chosen.saddr, chosen.prefixlen_s),
    };
    let prefix = IpNet::new(address(far, chosen.family)?, bits).ok()?;
    // One without a template that is not for what was held is nobody's: it would let anything pass.
    let plain = PolicyReading {
        number: if held { info.priority } else { 0 },
        spi: 0,
    };
    Some((PolicyId { prefix, way }, reading.unwrap_or(plain)))
}

/// Any address of the prefix's family at our end.
fn selector(id: PolicyId) -> (IpNet, IpNet) {
    let any = match id.prefix {
        IpNet::V4(_) => IpNet::from(IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        IpNet::V6(_) => IpNet::from(IpAddr::from(Ipv6Addr::UNSPECIFIED)),
    };
    let any = IpNet::new(any.addr(), 0).unwrap_or(any);
    match id.way {
        Way::Out => (any, id.prefix),
        _ => (id.prefix, any),
    }
}

const fn family(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u16,
        IpAddr::V6(_) => libc::AF_INET6 as u16,
    }
}

fn address(address: &Address, family: u16) -> Option<IpAddr> {
    let bytes = address.addr;
    match i32::from(family) {
        libc::AF_INET => {
            let [a, b, c, d, ..] = bytes;
            Some(IpAddr::from([a, b, c, d]))
        }
        libc::AF_INET6 => Some(IpAddr::from(bytes)),
        _ => None,
    }
}

/// The system's error number. Other errors carry whole messages, keys among them, and are not repeated.
fn errno(error: &xfrmnetlink::Error) -> io::Error {
    match error {
        xfrmnetlink::Error::NetlinkError(message) => message.to_io(),
        _ => io::Error::other("an answer that is not of its protocol"),
    }
}

fn refused(doing: &str, error: &xfrmnetlink::Error) -> Error {
    Error::Netlink {
        doing: doing.to_owned(),
        source: errno(error),
    }
}

fn tolerate(outcome: Result<(), xfrmnetlink::Error>, doing: &str) -> Result<(), Error> {
    match outcome {
        Err(error)
            if !matches!(
                errno(&error).raw_os_error(),
                Some(libc::ESRCH | libc::ENOENT)
            ) =>
        {
            Err(refused(doing, &error))
        }
        _ => Ok(()),
    }
}
