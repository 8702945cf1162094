//! What each client library sends as `:authority` on a Unix socket, as it encodes it: all are served.

use crate::frames::{Outcome, Raw, integer, literal};
use crate::support::ready;

const FETCH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";

/// RFC 9113, 7.
const PROTOCOL_ERROR: u32 = 1;
/// RFC 7541 6.2: `:authority` by its number in the static table.
const INDEXING: u8 = 0x41;
const PLAIN: u8 = 0x01;
const NEVER: u8 = 0x11;

fn percent_encoded(path: &str) -> String {
    path.replace('/', "%2F")
}

/// Huffman-coded (RFC 7541, appendix B), as Go and Java do what gets shorter by it.
fn huffman(first: u8, value: &str) -> Vec<u8> {
    let coded = huffman_bytes(value);
    let mut field = vec![first];
    integer(&mut field, 0x80, 7, coded.len());
    field.extend_from_slice(&coded);
    field
}

/// Codes of the letters that are used here.
fn huffman_bytes(value: &str) -> Vec<u8> {
    let code = |c: char| -> &str {
        match c {
            'a' => "00011",
            'c' => "00100",
            'e' => "00101",
            'g' => "100110",
            'h' => "100111",
            'k' => "1110101",
            'l' => "101000",
            'n' => "101010",
            'o' => "00111",
            'r' => "101100",
            's' => "01000",
            't' => "01001",
            'u' => "101101",
            '.' => "010111",
            '/' => "011000",
            other => panic!("no code for {other:?} here"),
        }
    };
    let mut bits: String = value.chars().map(code).collect();
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    let bytes = bits.as_bytes().chunks(8);
    bytes
        .map(|byte| {
            let text = std::str::from_utf8(byte).unwrap();
            u8::from_str_radix(text, 2).unwrap()
        })
        .collect()
}

#[tokio::test]
async fn every_authority_that_a_client_library_sends_is_served() {
    let (_ca, node, _) = ready().await;
    let path = node.path();
    let path = path.to_str().unwrap();
    let encoded = percent_encoded(path);
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("Go, .NET, Node: localhost", huffman(INDEXING, "localhost")),
        (
            "Go, not Huffman-coded",
            literal(INDEXING, b"", b"localhost"),
        ),
        (
            "C++, Python, Ruby, PHP: the path percent-encoded",
            literal(INDEXING, b"", encoded.as_bytes()),
        ),
        ("C-core of old", literal(PLAIN, b"", b"localhost")),
        (
            "Java: the path as it is",
            literal(INDEXING, b"", path.as_bytes()),
        ),
        (
            "Java, Huffman-coded",
            huffman(INDEXING, "/run/hs/agent.sock"),
        ),
        (
            "Java without indexing",
            literal(PLAIN, b"", path.as_bytes()),
        ),
        ("never indexed", literal(NEVER, b"", encoded.as_bytes())),
        (
            "its name spelled out",
            literal(0x40, b":authority", path.as_bytes()),
        ),
        (
            "Envoy: the cluster's name",
            literal(INDEXING, b"", b"handfast_agent"),
        ),
        ("Rust", literal(INDEXING, b"", b"[::]:50051")),
        (
            "an abstract socket",
            literal(INDEXING, b"", b"unix-abstract:%00name"),
        ),
        ("nonsense", literal(INDEXING, b"", b"a b%%/\\?#[\x80")),
        ("none", Vec::new()),
    ];
    for (client, authority) in table {
        let mut raw = Raw::connect(&node.path()).await;
        let stream = raw.headers(FETCH, &authority).await;
        raw.message(stream, &[]).await;
        let outcome = raw.outcome(stream).await;
        assert!(
            matches!(&outcome, Outcome::Message(message) if message.len() > 1000),
            "{client}: {outcome:?}"
        );
        // A second call names what was remembered by its number, the newest of the table.
        if authority.first().is_some_and(|first| first & 0xc0 == 0x40) {
            let stream = raw.headers(FETCH, &[0x80 | 62]).await;
            raw.message(stream, &[]).await;
            let outcome = raw.outcome(stream).await;
            assert!(
                matches!(outcome, Outcome::Message(_)),
                "{client}, the second time: {outcome:?}"
            );
        }
    }
}

/// RFC 9113, 8.3.1: it must not be empty. No library sends it by itself; who does is told at once.
#[tokio::test]
async fn an_empty_authority_is_refused_for_its_stream_alone() {
    let (_ca, node, _) = ready().await;
    let mut raw = Raw::connect(&node.path()).await;
    for empty in [
        literal(PLAIN, b"", b""),
        literal(INDEXING, b"", b""),
        vec![0x81],
    ] {
        let stream = raw.headers(FETCH, &empty).await;
        assert_eq!(raw.outcome(stream).await, Outcome::Reset(PROTOCOL_ERROR));
    }
    let stream = raw.headers(FETCH, &literal(PLAIN, b"", b"localhost")).await;
    raw.message(stream, &[]).await;
    let outcome = raw.outcome(stream).await;
    assert!(matches!(outcome, Outcome::Message(_)), "{outcome:?}");
}
