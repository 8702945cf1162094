//! The maps. What each is for, and who writes and reads it, stands in `handfast_layout::maps`.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, BPF_F_RDONLY_PROG},
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
};
use handfast_layout::{
    Addr, Announced, AnnouncedKey, Auth, AuthKey, Config, Connection, ConnectionKey, Endpoint,
    FragmentKey, HoldKey, HoldValue, Host, Identity, Local, LpmKey, Parked, PolicyKey, PolicyValue,
    Ports, Prefix, REASONS, Remote, Session, Usage,
};

use crate::work::Work;

/// Length of the link header where this instance is attached: 14, or 0 on a device without; set
/// when loaded.
#[unsafe(no_mangle)]
static LINK_LEN: Global<u32> = Global::new(14);

/// The IPv4 address of the host endpoint whose sockets this instance of from-host looks after, in memory order, or 0;
/// set when loaded.
#[unsafe(no_mangle)]
static SOURCE_V4: Global<u32> = Global::new(0);

/// The same for IPv6, word by word.
#[unsafe(no_mangle)]
static SOURCE_V6_0: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOURCE_V6_1: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOURCE_V6_2: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOURCE_V6_3: Global<u32> = Global::new(0);

/// How many flows `connections` has places for; set when loaded.
#[unsafe(no_mangle)]
static PLACES: Global<u32> = Global::new(131_072);

#[map(name = "layout")]
static LAYOUT: Array<u32> = Array::pinned(1, 0);
#[map(name = "config")]
static CONFIG: Array<Config> = Array::pinned(1, BPF_F_RDONLY_PROG);
#[map(name = "revision")]
static REVISION: Array<u64> = Array::pinned(1, BPF_F_RDONLY_PROG);
#[map(name = "endpoints")]
pub static ENDPOINTS: HashMap<u32, Endpoint> =
    HashMap::pinned(4096, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
#[map(name = "interfaces")]
static INTERFACES: HashMap<u32, u32> = HashMap::pinned(4096, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
#[map(name = "usage")]
pub static USAGE: HashMap<u32, Usage> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);
#[map(name = "locals")]
pub static LOCALS: HashMap<Addr, Local> =
    HashMap::pinned(8192, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
#[map(name = "hosts")]
pub static HOSTS: HashMap<Addr, Host> =
    HashMap::pinned(4096, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
#[map(name = "remotes")]
pub static REMOTES: HashMap<Addr, Remote> =
    HashMap::pinned(131_072, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
#[map(name = "prefixes")]
static PREFIXES: LpmTrie<Addr, Prefix> = LpmTrie::pinned(32_768, BPF_F_RDONLY_PROG);
#[map(name = "sessions")]
pub static SESSIONS: HashMap<u32, Session> =
    HashMap::pinned(16_384, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
#[map(name = "announced")]
pub static ANNOUNCED: HashMap<AnnouncedKey, Announced> =
    HashMap::pinned(262_144, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
#[map(name = "identities")]
pub static IDENTITIES: HashMap<u32, Identity> =
    HashMap::pinned(65_536, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
#[map(name = "policy")]
static POLICY: LpmTrie<PolicyKey, PolicyValue> = LpmTrie::pinned(524_288, BPF_F_RDONLY_PROG);
#[map(name = "cidrs")]
static CIDRS: LpmTrie<Addr, u32> = LpmTrie::pinned(65_536, BPF_F_RDONLY_PROG);
#[map(name = "auth")]
pub static AUTH: HashMap<AuthKey, Auth> =
    HashMap::pinned(524_288, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
#[map(name = "connections")]
pub static CONNECTIONS: HashMap<ConnectionKey, Connection> = HashMap::pinned(131_072, 0);
#[map(name = "taken")]
static TAKEN: Array<u64> = Array::pinned(1, 0);
#[map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<FragmentKey, Ports> = LruHashMap::pinned(8192, 0);
#[map(name = "holds")]
pub static HOLDS: HashMap<HoldKey, HoldValue> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map(name = "hold_total")]
static HOLD_TOTAL: Array<HoldValue> = Array::pinned(2, 0);
#[map(name = "parked")]
pub static PARKED: HashMap<u32, Parked> = HashMap::pinned(16_384, BPF_F_NO_PREALLOC);
#[map(name = "events")]
pub static EVENTS: RingBuf = RingBuf::pinned(1 << 20, 0);
#[map(name = "counters")]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(REASONS, 0);

/// The workspace of a run. Not pinned: it holds nothing between two packets.
#[map(name = "scratch")]
static SCRATCH: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// The same for packets that sockets of this node receive.
#[map(name = "host_scratch")]
static HOST_SCRATCH: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// The endpoint whose interface this is.
#[inline(always)]
pub fn endpoint(ifindex: u32) -> Option<u32> {
    // SAFETY: one integer, read once.
    unsafe { INTERFACES.get(&ifindex) }.copied()
}

/// Length of the link header here.
#[inline(always)]
pub fn link_len() -> u32 {
    LINK_LEN.load()
}

/// The settings.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// State of the tables: `handfast_layout::is_settled`.
#[inline(always)]
pub fn revision() -> u64 {
    REVISION.get(0).copied().unwrap_or(0)
}

/// This run's workspace.
#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    // SAFETY: one slot a CPU, and a tc program is not interrupted by another on the same CPU:
    // both directions run with bottom halves disabled.
    SCRATCH.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// This run's workspace, where the packet is one that a socket of this node receives.
#[inline(always)]
pub fn host_work() -> Option<&'static mut Work> {
    // SAFETY: one slot a CPU, used by one program only, which runs where packets arrive: with bottom halves disabled.
    HOST_SCRATCH
        .get_ptr_mut(0)
        .map(|work| unsafe { &mut *work })
}

/// The address that a socket is to use toward the mesh; IPv4 as its last word.
#[inline(always)]
pub fn source(is_v4: bool) -> Option<Addr> {
    if is_v4 {
        let word = SOURCE_V4.load();
        return (word != 0).then(|| Addr::v4_word(word));
    }
    let words = [
        SOURCE_V6_0.load(),
        SOURCE_V6_1.load(),
        SOURCE_V6_2.load(),
        SOURCE_V6_3.load(),
    ];
    (words != [0; 4]).then(|| Addr::v6_words(words))
}

/// How many flows there is room for.
#[inline(always)]
pub fn places() -> u32 {
    PLACES.load()
}

/// How many places are taken.
#[inline(always)]
pub fn taken() -> Option<*mut u64> {
    TAKEN.get_ptr_mut(0)
}

/// What is held in all.
#[inline(always)]
pub fn held() -> Option<*mut HoldValue> {
    HOLD_TOTAL.get_ptr_mut(0)
}

/// The last ticket given out.
#[inline(always)]
pub fn tickets() -> Option<*mut HoldValue> {
    HOLD_TOTAL.get_ptr_mut(1)
}

/// The node whose prefix contains an address.
#[inline(always)]
pub fn prefix(key: &LpmKey<Addr>) -> Option<&'static Prefix> {
    PREFIXES.get(packed(key))
}

/// The CIDR identity that an address has.
#[inline(always)]
pub fn cidr(key: &LpmKey<Addr>) -> Option<u32> {
    CIDRS.get(packed(key)).copied()
}

/// What policy says.
#[inline(always)]
pub fn policy(key: &LpmKey<PolicyKey>) -> Option<&'static PolicyValue> {
    POLICY.get(packed(key))
}

/// aya's key is the same bytes without alignment, which would be filled in byte by byte.
#[inline(always)]
fn packed<T>(key: &LpmKey<T>) -> &Key<T> {
    // SAFETY: both are `repr(C)` with a u32 and a `T`, and ours has no padding.
    unsafe { &*core::ptr::from_ref(key).cast() }
}
