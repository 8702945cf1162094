//! What a client of the Workload API sends before HTTP/2 sees it: with an authority replaced, every later block of
//! headers still means what it meant, however the bytes are cut into pieces.

use fluke_hpack::Decoder;
use handfast_agent::workload_api::authority::Rewriter;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 4;

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

pub fn run(data: &[u8]) {
    pieces(data);
    meaning(data);
}

/// Any bytes at all: whole or in pieces they become the same, and no more than they were.
fn pieces(data: &[u8]) {
    let feed = |size: usize| {
        let mut rewriter = Rewriter::default();
        let mut out = Vec::new();
        for piece in data.chunks(size) {
            rewriter.feed(piece, &mut out);
        }
        rewriter.finish(&mut out);
        out
    };
    let whole = feed(usize::MAX);
    assert!(whole.len() <= data.len(), "it grew");
    let size = usize::from(data.first().copied().unwrap_or(0)) + 1;
    assert_eq!(feed(size), whole, "in pieces of {size}");
}

/// Ends every block: an authority that is remembered by nobody. Where it is replaced, the block was understood to its
/// end, which the other decoder needs (it panics at a number that is cut short).
const PROBE: &[u8] = b"\x01\x01x";
const REPLACED: &[u8] = b"\x01\x01_";

/// The same as header blocks, each after a byte with its length: what one decoder makes of the blocks as they were,
/// another makes of them as they became, but for authorities.
fn meaning(mut data: &[u8]) {
    let mut rewriter = Rewriter::default();
    let mut before = Decoder::new();
    let mut after = Decoder::new();
    rewriter.feed(PREFACE, &mut Vec::new());
    while let Some((length, rest)) = data.split_first() {
        let (block, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        data = rest;
        let block = [block, PROBE].concat();
        let [_, length @ ..] = u32::try_from(block.len()).expect("short").to_be_bytes();
        let mut out = Vec::new();
        rewriter.feed(&length, &mut out);
        rewriter.feed(&[HEADERS, END_HEADERS, 0, 0, 0, 1], &mut out);
        rewriter.feed(&block, &mut out);
        let (head, rewritten) = out.split_at(9);
        if !rewritten.ends_with(REPLACED) {
            return;
        }
        assert_eq!(
            usize::from(head[1]) << 8 | usize::from(head[2]),
            rewritten.len()
        );
        let Some(meant) = decode(&mut before, &block) else {
            return;
        };
        let means = decode(&mut after, rewritten).expect("well-formed before, well-formed after");
        assert_eq!(meant.len(), means.len());
        for (was, is) in meant.iter().zip(&means) {
            let replaced = was.0 == b":authority" && is.0 == was.0 && is.1 == b"_";
            assert!(replaced || was == is, "{was:?} became {is:?}");
        }
    }
}

/// None: not well-formed, or so much of it that nobody would take it.
fn decode(decoder: &mut Decoder<'_>, block: &[u8]) -> Option<Fields> {
    let mut fields = Fields::new();
    decoder
        .decode_with_cb(block, |name, value| {
            fields.push((name.into_owned(), value.into_owned()));
        })
        .ok()?;
    Some(fields)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let path: &[u8] = b"%2Frun%2Fhandfast%2Fagent.sock";
    let named = [b"\x40\x0a:authority\x1e", path].concat();
    let indexed = [b"\x41\x1e", path].concat();
    let rest: &[u8] = b"\x83\x86\x40\x12workload.spiffe.io\x04true\x40\x02te\x08trailers";
    // The entries by their numbers, as a second call has them; then a smaller table, and another entry.
    let again: &[u8] = b"\xbe\xbf\xc0\x83";
    let smaller: &[u8] = b"\x3f\x21\x40\x01a\x01b\xbe";
    let mut seeds = Vec::new();
    for first in [named, indexed] {
        let first = [first.as_slice(), rest].concat();
        let blocks = [first.as_slice(), again, smaller, again];
        seeds.push(
            blocks
                .iter()
                .flat_map(|block| {
                    let length = u8::try_from(block.len()).expect("a short block");
                    std::iter::once(length).chain(block.iter().copied())
                })
                .collect(),
        );
        let length = u8::try_from(first.len()).expect("a short block");
        let frame = [0, 0, length, HEADERS, END_HEADERS | 1, 0, 0, 0, 1];
        seeds.push([PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0], &frame, &first].concat());
    }
    seeds
}
