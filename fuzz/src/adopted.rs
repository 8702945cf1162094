//! Entries of adopted maps: what an agent writes, with the meaning that it had, or nothing.

use handfast_bpf::{Auth, Direction, Ports, Verdict, foreign};
use handfast_layout::{
    Addr, EGRESS, POLICY_BITS_ANY, POLICY_BITS_PORT, POLICY_BITS_PROTO, PolicyKey, PolicyValue,
    VERDICT_ALLOW,
};

pub fn run(data: &[u8]) {
    if let Some((bits, key, value)) = policy(data)
        && let Some(read) = foreign::policy(bits, key, value)
    {
        means_the_same(bits, key, value, read);
    }
    if let Some((bits, addr)) = prefix(data)
        && let Some(net) = foreign::prefix(bits, addr)
    {
        assert_eq!(net, net.trunc(), "bits behind the prefix's end");
        let (length, octets) = match net.network() {
            std::net::IpAddr::V4(v4) => (96 + u32::from(net.prefix_len()), v4.to_ipv6_mapped()),
            std::net::IpAddr::V6(v6) => (u32::from(net.prefix_len()), v6),
        };
        assert_eq!((length, Addr::v6(octets.octets())), (bits, addr));
    }
}

type Read = (
    handfast_bpf::EndpointId,
    handfast_bpf::PolicyKey,
    handfast_bpf::PolicyValue,
);

fn means_the_same(bits: u32, key: PolicyKey, value: PolicyValue, (endpoint, read, says): Read) {
    assert_eq!((endpoint.0, read.identity.0), (key.endpoint, key.identity));
    assert_eq!(read.direction == Direction::Egress, key.direction == EGRESS);
    // Nothing is wider than what was read, least of all an allow.
    match read.ports {
        Ports::Any => assert_eq!((bits, key.proto, key.port), (POLICY_BITS_ANY, 0, 0)),
        Ports::Protocol(protocol) => {
            assert_eq!(
                (bits, key.proto, key.port),
                (POLICY_BITS_PROTO, protocol, 0)
            );
        }
        Ports::Prefix {
            protocol,
            port,
            bits: length,
        } => {
            assert_eq!(
                (bits, key.proto),
                (POLICY_BITS_PROTO + u32::from(length), protocol)
            );
            assert!(bits <= POLICY_BITS_PORT && u16::from_be(key.port) == port);
        }
    }
    assert_eq!(
        says.verdict == Verdict::Allow,
        value.verdict == VERDICT_ALLOW
    );
    assert_eq!(
        says.auth == Auth::Disabled,
        value.auth == handfast_layout::AUTH_DISABLED
    );
    assert_eq!(
        (says.encryption, says.rule),
        (value.encryption == 1, value.rule)
    );
}

fn policy(data: &[u8]) -> Option<(u32, PolicyKey, PolicyValue)> {
    let (bits, data) = number(data)?;
    let (endpoint, data) = number(data)?;
    let (identity, data) = number(data)?;
    let (rule, data) = number(data)?;
    let [
        direction,
        proto,
        high,
        low,
        verdict,
        auth,
        encryption,
        reserved,
        ..,
    ] = *data
    else {
        return None;
    };
    let key = PolicyKey {
        endpoint,
        identity,
        direction,
        proto,
        port: u16::from_ne_bytes([high, low]),
    };
    let value = PolicyValue {
        verdict,
        auth,
        encryption,
        reserved,
        rule,
    };
    Some((bits, key, value))
}

fn prefix(data: &[u8]) -> Option<(u32, Addr)> {
    let (bits, data) = number(data)?;
    Some((bits, Addr::v6(*data.first_chunk()?)))
}

fn number(data: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = data.split_first_chunk()?;
    Some((u32::from_ne_bytes(*number), rest))
}

pub fn seeds() -> Vec<Vec<u8>> {
    let entry = |bits: u32, proto: u8, port: u16| {
        let numbers = [bits, 7, 300, 9].map(u32::to_ne_bytes).concat();
        let [high, low] = port.to_be_bytes();
        [
            &numbers[..],
            &[EGRESS, proto, high, low, VERDICT_ALLOW, 1, 1, 0],
        ]
        .concat()
    };
    let policies = [
        entry(POLICY_BITS_ANY, 0, 0),
        entry(POLICY_BITS_PROTO, 1, 0),
        entry(POLICY_BITS_PORT, 6, 443),
        entry(POLICY_BITS_PROTO + 1, 17, 0x8000),
    ];
    for seed in &policies {
        let (bits, key, value) = policy(seed).unwrap();
        assert!(foreign::policy(bits, key, value).is_some(), "{seed:?}");
    }
    let net = |bits: u32, octets: [u8; 16]| [&bits.to_ne_bytes()[..], &octets].concat();
    let mut mapped = [0; 16];
    mapped[10..].copy_from_slice(&[0xff, 0xff, 10, 2, 0, 0]);
    let mut plain = [0; 16];
    plain[..2].copy_from_slice(&[0xfd, 2]);
    let prefixes = [net(112, mapped), net(16, plain)];
    for seed in &prefixes {
        let (bits, addr) = prefix(seed).unwrap();
        assert!(foreign::prefix(bits, addr).is_some(), "{seed:?}");
    }
    policies.into_iter().chain(prefixes).collect()
}
