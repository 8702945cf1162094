//! What the kernel's netlink sockets and a userspace WireGuard answer: read as something of ours, or as nothing.

use handfast_bpf::foreign::filters;
use handfast_encrypt::foreign;

/// As routes of ours name who made them.
const OUR_PROTOCOL: u8 = 72;
/// The interface id of the device whose associations are asked for.
const OURS: u32 = 7;

pub fn run(data: &[u8]) {
    // Each has a message of its own, which is longer than its handle.
    assert!(filters(data).len() <= data.len() / 36);
    let _ = foreign::routing(data);
    if let Some(found) = foreign::transformations(data, OURS) {
        // Ours is told by the interface id, which then stands somewhere in the answer.
        let id = OURS.to_ne_bytes();
        assert!(data.windows(4).any(|bytes| bytes == id), "{found}");
    }
    if let Some(peers) = foreign::peers(data) {
        let text = std::str::from_utf8(data).expect("what is no text is refused");
        let named = text
            .split('\n')
            .filter(|line| line.starts_with("public_key="));
        assert_eq!(named.count(), peers);
    }
}

/// A netlink message; its attributes by type.
fn message(kind: u16, body: &[u8], attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut all = body.to_vec();
    for (kind, value) in attributes {
        all.extend(attribute(*kind, value));
    }
    let length = u32::try_from(16 + all.len()).unwrap().to_ne_bytes();
    let flags = 2_u16.to_ne_bytes();
    let head = [
        &length[..],
        &kind.to_ne_bytes(),
        &flags,
        &[1, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    [head, all].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut all = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    all.resize(all.len().next_multiple_of(4), 0);
    all
}

fn number(value: u32) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

/// A link of kind xfrm with its interface id, an alias and counters (linux/if_link.h).
fn link() -> Vec<u8> {
    let mut body = vec![0; 16];
    body[4] = 9;
    let data = attribute(2, &number(OURS));
    let info = [attribute(1, b"xfrm\0"), attribute(2, &data)].concat();
    message(
        16,
        &body,
        &[
            (3, b"hf-xfrm0\0".to_vec()),
            (4, number(1400)),
            (18, info),
            (20, b"handfast\0".to_vec()),
            (23, vec![1; 200]),
        ],
    )
}

/// A route of ours into a device (linux/rtnetlink.h, `struct rtmsg`), of either family.
fn route(family: u8, prefix: &[u8], bits: u8) -> Vec<u8> {
    // Of protocol 72, which is ours; unicast.
    let body = [family, bits, 0, 0, 0, OUR_PROTOCOL, 0, 1, 0, 0, 0, 0];
    message(
        24,
        &body,
        &[
            (1, prefix.to_vec()),
            (4, number(9)),
            (6, number(10)),
            (15, number(7250)),
        ],
    )
}

/// `struct xfrm_selector` (linux/xfrm.h): from anywhere to 10.2.0.0/16.
fn selector() -> Vec<u8> {
    let mut selector = vec![0; 56];
    selector[..4].copy_from_slice(&[10, 2, 0, 0]);
    selector[40] = 2;
    selector[42] = 16;
    selector
}

/// `struct xfrm_usersa_info`, an association of ESP with our interface id.
fn association() -> Vec<u8> {
    let mut body = selector();
    body.resize(224, 0);
    body[56..60].copy_from_slice(&[192, 0, 2, 2]);
    body[72..76].copy_from_slice(&[0, 0, 16, 1]);
    body[76] = 50;
    body[80..84].copy_from_slice(&[192, 0, 2, 1]);
    body[212] = 2;
    message(16, &body, &[(31, number(OURS))])
}

/// `struct xfrm_userpolicy_info`, outward, with its template.
fn policy() -> Vec<u8> {
    let mut body = selector();
    body.resize(168, 0);
    body[160] = 1;
    let mut template = vec![0; 64];
    template[16..20].copy_from_slice(&[0, 0, 16, 1]);
    template[20] = 50;
    template[24] = 2;
    message(19, &body, &[(5, template), (31, number(OURS))])
}

/// `struct tcmsg`, a filter of the first preference with the name of its program (linux/pkt_cls.h).
fn hooked() -> Vec<u8> {
    let mut body = vec![0; 20];
    body[8] = 7;
    body[16..20].copy_from_slice(&number((1 << 16) | 0x300));
    let options = attribute(7, b"theirs\0");
    message(44, &body, &[(1, b"bpf\0".to_vec()), (2, options)])
}

fn daemon() -> Vec<u8> {
    let (key, other) = ("ab".repeat(32), "cd".repeat(32));
    format!(
        "private_key={key}\nlisten_port=51872\nfwmark=7\npublic_key={other}\npreshared_key={key}\nendpoint=192.0.2.1:51872\n\
         last_handshake_time_sec=1700000000\ntx_bytes=10\nrx_bytes=20\nallowed_ip=10.1.0.0/16\nerrno=0\n\n"
    )
    .into_bytes()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let routing = [
        link(),
        route(2, &[10, 2, 0, 0], 16),
        route(10, &[0xfd, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 16),
    ];
    let transformations = [association(), policy()];
    // An example that is not understood would be none.
    for seed in &routing {
        assert!(foreign::routing(seed).is_some(), "{seed:?}");
    }
    for seed in &transformations {
        assert!(foreign::transformations(seed, OURS).is_some(), "{seed:?}");
    }
    assert_eq!(foreign::peers(&daemon()), Some(1));
    assert_eq!(filters(&hooked()), [7]);
    routing
        .into_iter()
        .chain(transformations)
        .chain([daemon(), hooked()])
        .collect()
}
