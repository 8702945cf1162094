//! Runs one program on one packet in the kernel, with the maps as given.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::Path,
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupSkb, SchedClassifier},
};
use handfast_bpf::*;
use handfast_layout as layout;

use super::{OBJECT, Pins};

/// An endpoint's policy as a whole: an agent writes one entry after the other.
pub trait WholePolicy {
    /// Exactly these entries.
    fn replace_policy(
        &self,
        endpoint: EndpointId,
        entries: &[(PolicyKey, PolicyValue)],
    ) -> Result<(), Error>;

    /// None at all.
    fn remove_policy(&self, endpoint: EndpointId) -> Result<(), Error> {
        self.replace_policy(endpoint, &[])
    }
}

impl WholePolicy for Tables {
    fn replace_policy(
        &self,
        endpoint: EndpointId,
        entries: &[(PolicyKey, PolicyValue)],
    ) -> Result<(), Error> {
        for (key, _) in self.policy(endpoint)? {
            self.remove_policy_entry(endpoint, &key)?;
        }
        self.add_policy(endpoint, entries)?;
        self.policy_changed()
    }
}

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Let through, with these of our mark bits.
    Pass(u32),
    /// Dropped.
    Drop(Reason),
    /// Sent to the hold device.
    Hold,
    /// Something that no program of ours should do.
    Strange(u32),
}

pub const DECIDED: u32 = 1;
pub const UNDECIDED: u32 = 2;
pub const RETURNED: u32 = 4;
pub const SOURCE: u32 = 8;
/// From the wire: no gate has judged it.
pub const OUTSIDE: u32 = DECIDED | UNDECIDED;

/// How a packet came.
#[derive(Clone, Copy, Debug)]
pub struct Came {
    pub mark: u32,
    /// 0: made by this node.
    pub by: u32,
}

impl Came {
    /// With a number in `priority`, where a program can keep it from one repetition to the next.
    pub fn numbered(self, number: u32) -> Numbered {
        Numbered { came: self, number }
    }
}

/// How a packet came, with a number.
pub struct Numbered {
    came: Came,
    number: u32,
}

impl From<Came> for Numbered {
    fn from(came: Came) -> Self {
        came.numbered(0)
    }
}

/// Forwarded, after its endpoint's gate.
pub const GATED: Came = Came {
    mark: SOURCE << 2,
    by: 3,
};
/// From elsewhere, without a mark.
pub const FORWARDED: Came = Came { mark: 0, by: 3 };
/// Made by the node.
pub const HOST: Came = Came { mark: 0, by: 0 };

/// One node: endpoints 7 and 8 here, peer 5 with an address, sessions, pairs and policy as wanted.
pub struct Node {
    pub kernel: Kernel,
    object: Ebpf,
    pins: Pins,
}

pub const ENDPOINT: EndpointId = EndpointId(7);
pub const OTHER: EndpointId = EndpointId(8);
pub const PEER: PeerNumber = PeerNumber(5);
pub const ME: IdentityNumber = IdentityNumber(300);
pub const NEIGHBOUR: IdentityNumber = IdentityNumber(301);
pub const THEM: IdentityNumber = IdentityNumber(400);
pub const EPOCH: Epoch = Epoch(3);

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub me: IpAddr,
    pub neighbour: IpAddr,
    pub them: IpAddr,
    pub stranger: IpAddr,
    pub world: IpAddr,
}

pub fn families() -> [Addresses; 2] {
    let all = |list: [&str; 5]| {
        let [me, neighbour, them, stranger, world] = list.map(|a| a.parse().unwrap());
        Addresses {
            me,
            neighbour,
            them,
            stranger,
            world,
        }
    };
    [
        all(["10.1.0.7", "10.1.0.8", "10.2.0.9", "10.2.0.66", "192.0.2.1"]),
        all(["fd01::7", "fd01::8", "fd02::9", "fd02::66", "2001:db8::1"]),
    ]
}

pub fn far() -> Duration {
    boot_time() + Duration::from_secs(3600)
}

/// A moment that has passed for everybody: gates know the time to a tick of the kernel's.
pub fn just_now() -> Duration {
    boot_time() - Duration::from_millis(20)
}

impl Node {
    /// A node on which everything is as it should be, and policy allows everything that is proven.
    pub fn new(name: &str) -> Option<Self> {
        Self::with_connections(name, 512)
    }

    /// The same, with room for as many flows.
    pub fn with_connections(name: &str, connections: u32) -> Option<Self> {
        Self::with_places(name, connections, connections)
    }

    /// The same, whose gates believe that there are so many places.
    pub fn with_places(name: &str, connections: u32, places: u32) -> Option<Self> {
        let pins = Pins::new(name)?;
        let mut options = Options::new(pins.path());
        options.sizes = Sizes {
            connections,
            events: 1 << 16,
        };
        let kernel = Kernel::open(options).unwrap();
        let object = EbpfLoader::new()
            .default_map_pin_directory(pins.path())
            .map_max_entries("connections", connections)
            .override_global("PLACES", &places, true)
            .load(OBJECT)
            .unwrap();
        let node = Self {
            kernel,
            object,
            pins,
        };
        let tables = node.tables();
        let mut settings = tables.settings().unwrap();
        settings.hold = Some(1);
        settings.tunnel = Some(1);
        tables.set_settings(&settings).unwrap();
        // Where a test run's packets are: the loopback device.
        tables.set_interface(1, ENDPOINT).unwrap();
        for prefix in ["10.1.0.0/16", "fd01::/16"] {
            tables
                .set_prefix(prefix.parse().unwrap(), PeerNumber::LOCAL)
                .unwrap();
        }
        for prefix in ["10.2.0.0/16", "fd02::/16"] {
            tables.set_prefix(prefix.parse().unwrap(), PEER).unwrap();
        }
        for identity in [ME, NEIGHBOUR, THEM] {
            let valid = Identity {
                valid_until: far(),
                revoked: false,
            };
            tables.set_identity(identity, &valid).unwrap();
        }
        for family in families() {
            tables
                .set_local(
                    family.me,
                    Local {
                        endpoint: ENDPOINT,
                        identity: ME,
                    },
                )
                .unwrap();
            tables
                .set_local(
                    family.neighbour,
                    Local {
                        endpoint: OTHER,
                        identity: NEIGHBOUR,
                    },
                )
                .unwrap();
            tables.set_remote(family.them, &remote()).unwrap();
            tables.set_announced(family.me, PEER, &announced()).unwrap();
        }
        tables.set_session(PEER, &session()).unwrap();
        for key in [pair(), local_pair()] {
            tables
                .set_pair(
                    key,
                    Pair {
                        expires: far(),
                        epoch: EPOCH,
                    },
                )
                .unwrap();
        }
        for endpoint in [ENDPOINT, OTHER] {
            let entries: Vec<_> = [Direction::Ingress, Direction::Egress]
                .map(|direction| {
                    rule(
                        direction,
                        IdentityNumber::ANY,
                        Ports::Any,
                        allow(Auth::Disabled),
                    )
                })
                .into_iter()
                .chain([THEM, NEIGHBOUR, ME].into_iter().flat_map(|identity| {
                    [Direction::Ingress, Direction::Egress].map(|direction| {
                        rule(direction, identity, Ports::Any, allow(Auth::Required))
                    })
                }))
                .collect();
            tables.replace_policy(endpoint, &entries).unwrap();
        }
        Some(node)
    }

    /// Where its maps are pinned.
    pub fn pins(&self) -> &Path {
        self.pins.path()
    }

    pub fn tables(&self) -> &Tables {
        self.kernel.tables()
    }

    /// Forgets what is held, and goes on holding.
    pub fn reset_holds(&self) {
        let settings = self.tables().settings().unwrap();
        self.tables().reset_holds().unwrap();
        assert_eq!(self.tables().settings().unwrap().hold, None);
        self.tables().set_settings(&settings).unwrap();
    }

    /// Counts as much as held by the pair of endpoint 7 and an address, outward.
    pub fn set_held(&mut self, remote: IpAddr, packets: i64) {
        let octets = match remote {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let key = layout::HoldKey {
            endpoint: ENDPOINT.0,
            direction: layout::EGRESS,
            quota: layout::quota::PAIR,
            reserved: 0,
            remote: layout::Addr::v6(octets),
        };
        let value = layout::HoldValue {
            packets: packets.cast_unsigned(),
            bytes: packets.saturating_mul(100).cast_unsigned(),
        };
        let map = self.object.map_mut("holds").unwrap();
        let mut holds = aya::maps::HashMap::try_from(map).unwrap();
        holds.insert(key, value, 0).unwrap();
    }

    /// How many entries count what is held.
    pub fn hold_entries(&self) -> usize {
        let map = self.object.map("holds").unwrap();
        aya::maps::HashMap::<_, layout::HoldKey, layout::HoldValue>::try_from(map)
            .unwrap()
            .keys()
            .count()
    }

    /// Runs a program on a frame.
    pub fn run(&mut self, program: &str, came: Came, frame: &[u8]) -> Outcome {
        let before = self.tables().counters().unwrap();
        let (verdict, mark) = self.raw(program, came, frame);
        match verdict {
            0xffff_ffff => Outcome::Pass(mark >> 2 & 15),
            7 => Outcome::Hold,
            2 => Outcome::Drop(self.rose(&before)),
            other => Outcome::Strange(other),
        }
    }

    /// The same, as the kernel says it: verdict and mark.
    pub fn raw(&mut self, name: &str, came: Came, frame: &[u8]) -> (u32, u32) {
        let done = test_run(self.program(name), came, frame, 1);
        (done.verdict, done.mark)
    }

    /// Runs a program of control groups on what a socket of this process sends or receives.
    pub fn run_socket(&mut self, name: &str, came: Came, frame: &[u8]) -> Outcome {
        let program: &mut CgroupSkb = self.object.program_mut(name).unwrap().try_into().unwrap();
        if program.fd().is_err() {
            program.load().unwrap();
        }
        let fd = program.fd().unwrap().as_fd().as_raw_fd();
        let before = self.tables().counters().unwrap();
        let done = test_run(fd, came, frame, 1);
        match done.verdict {
            1 => Outcome::Pass(done.mark >> 2 & 15),
            0 => Outcome::Drop(self.rose(&before)),
            other => Outcome::Strange(other),
        }
    }

    /// The one reason of a drop.
    fn rose(&self, before: &[(Reason, u64)]) -> Reason {
        let after = self.tables().counters().unwrap();
        let rose: Vec<Reason> = before
            .iter()
            .zip(&after)
            .filter(|(b, a)| a.1 > b.1 && (b.0 as u16 >= 10 || b.0 == Reason::Internal))
            .map(|(b, _)| b.0)
            .collect();
        match rose[..] {
            [reason] => reason,
            _ => panic!("a drop has one reason: {rose:?}"),
        }
    }

    /// A program's descriptor; it is loaded when first asked for.
    pub fn program(&mut self, name: &str) -> RawFd {
        let program: &mut SchedClassifier =
            self.object.program_mut(name).unwrap().try_into().unwrap();
        if program.fd().is_err() {
            program.load().unwrap();
        }
        program.fd().unwrap().as_fd().as_raw_fd()
    }
}

/// What a test run gave.
pub struct TestRun {
    pub verdict: u32,
    pub mark: u32,
    /// Nanoseconds of one of the repetitions.
    pub nanoseconds: u32,
}

/// BPF_PROG_TEST_RUN (linux/bpf.h), which aya does not have for this kind of program.
pub fn test_run(fd: RawFd, came: impl Into<Numbered>, frame: &[u8], repeat: u32) -> TestRun {
    let Numbered { came, number } = came.into();
    const TEST_RUN: libc::c_long = 10;
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
        padding: u32,
    }
    // `struct __sk_buff`: mark is the third of its u32s, priority the ninth, ingress_ifindex the tenth.
    let mut context = [0u32; 48];
    context[2] = came.mark;
    context[8] = number;
    context[9] = came.by;
    let mut context_out = [0u32; 48];
    let mut data_out = vec![0u8; frame.len() + 256];
    let mut attributes = Attributes {
        prog_fd: fd as u32,
        data_size_in: frame.len() as u32,
        data_size_out: data_out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: data_out.as_mut_ptr() as u64,
        repeat,
        ctx_size_in: 192,
        ctx_size_out: 192,
        ctx_in: context.as_ptr() as u64,
        ctx_out: context_out.as_mut_ptr() as u64,
        ..Attributes::default()
    };
    // SAFETY: every pointer and length above is of a live buffer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            TEST_RUN,
            &raw mut attributes,
            size_of::<Attributes>(),
        )
    };
    assert_eq!(result, 0, "test run: {}", std::io::Error::last_os_error());
    TestRun {
        verdict: attributes.retval,
        mark: context_out[2],
        nanoseconds: attributes.duration,
    }
}

pub fn remote() -> Remote {
    Remote {
        identity: THEM,
        peer: PEER,
        epoch: EPOCH,
        generation: 1,
        refused_until: None,
    }
}

pub fn announced() -> Announced {
    Announced {
        endpoint: ENDPOINT,
        epoch: EPOCH,
        state: AnnouncedState::Confirmed,
        generation: 1,
    }
}

pub fn session() -> Session {
    Session {
        oldest: EPOCH,
        current: EPOCH,
        expires: far(),
        state: SessionState::Ready,
    }
}

pub fn pair() -> PairKey {
    PairKey {
        local: ME,
        remote: THEM,
        peer: PEER,
    }
}

pub fn local_pair() -> PairKey {
    PairKey {
        local: NEIGHBOUR,
        remote: ME,
        peer: PeerNumber::LOCAL,
    }
}

pub fn allow(auth: Auth) -> PolicyValue {
    PolicyValue {
        verdict: Verdict::Allow,
        auth,
        encryption: false,
        rule: 1,
    }
}

pub fn deny() -> PolicyValue {
    PolicyValue {
        verdict: Verdict::Deny,
        auth: Auth::Disabled,
        encryption: false,
        rule: 2,
    }
}

pub fn rule(
    direction: Direction,
    identity: IdentityNumber,
    ports: Ports,
    value: PolicyValue,
) -> (PolicyKey, PolicyValue) {
    (
        PolicyKey {
            direction,
            identity,
            ports,
        },
        value,
    )
}
