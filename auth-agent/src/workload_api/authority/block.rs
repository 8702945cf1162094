//! One header block (RFC 7541): finds the literals that are an `:authority`, and nothing else.

/// `:authority` in the static table (RFC 7541, appendix A).
const STATIC_AUTHORITY: usize = 1;
const NAME: &[u8] = b":authority";
/// The same, Huffman-coded (RFC 7541, appendix B); the only way to do so.
const NAME_HUFFMAN: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
/// The shortest authority there is, so that it is never longer than the one it replaces.
const REPLACEMENT: u8 = b'_';
const HUFFMAN: u8 = 0x80;

/// Writes `block` to `out` with every authority replaced. None: it is not well-formed, and `out` is of no use.
pub(super) fn rewrite(block: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut rest = Reader { block };
    while let Some(&first) = rest.block.first() {
        let from = rest.block;
        let name = match first {
            // Indexed: no literal.
            0x80.. => rest.integer(7).map(|_| None)?,
            // With incremental indexing.
            0x40.. => Some(rest.integer(6)?),
            // A change of the table's size.
            0x20.. => rest.integer(5).map(|_| None)?,
            // Without indexing, or never indexed.
            _ => Some(rest.integer(4)?),
        };
        let mut replace = false;
        if let Some(name) = name {
            let is_authority = match name {
                STATIC_AUTHORITY => true,
                0 => matches!(rest.string()?, (false, NAME) | (true, NAME_HUFFMAN)),
                _ => false,
            };
            let up_to_value = rest.block;
            let (_, value) = rest.string()?;
            if is_authority && !value.is_empty() {
                replace = true;
                out.extend_from_slice(consumed(from, up_to_value)?);
                out.extend_from_slice(&[1, REPLACEMENT]);
            }
        }
        if !replace {
            out.extend_from_slice(consumed(from, rest.block)?);
        }
    }
    Some(())
}

fn consumed<'a>(from: &'a [u8], rest: &[u8]) -> Option<&'a [u8]> {
    from.get(..from.len().checked_sub(rest.len())?)
}

struct Reader<'a> {
    block: &'a [u8],
}

impl<'a> Reader<'a> {
    /// RFC 7541 5.1; what needs more than four further bytes is longer than any block.
    fn integer(&mut self, prefix: u32) -> Option<usize> {
        let (first, mut rest) = self.block.split_first()?;
        let mask = u8::MAX >> (8 - prefix);
        let mut value = usize::from(first & mask);
        if first & mask == mask {
            let mut shift = 0;
            loop {
                let (byte, after) = rest.split_first()?;
                rest = after;
                value += usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
                if shift > 21 {
                    return None;
                }
            }
        }
        self.block = rest;
        Some(value)
    }

    /// RFC 7541 5.2: is it Huffman-coded, and its bytes.
    fn string(&mut self) -> Option<(bool, &'a [u8])> {
        let huffman = self.block.first()? & HUFFMAN != 0;
        let length = self.integer(7)?;
        let (string, rest) = self.block.split_at_checked(length)?;
        self.block = rest;
        Some((huffman, string))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(block: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        rewrite(block, &mut out).map(|()| out)
    }

    /// A literal: its first byte, an optional name, and a value that is not Huffman-coded.
    fn literal(first: u8, name: Option<&[u8]>, value: &str) -> Vec<u8> {
        let mut block = vec![first];
        for part in name.into_iter().chain([value.as_bytes()]) {
            block.push(u8::try_from(part.len()).unwrap());
            block.extend_from_slice(part);
        }
        block
    }

    #[test]
    fn an_authority_is_replaced_however_its_name_is_written() {
        for path in [
            "/run/handfast/agent.sock",
            "%2Frun%2Fhandfast%2Fagent.sock",
            "localhost",
            "x",
        ] {
            for first in [0x41, 0x01, 0x11] {
                assert_eq!(
                    rewritten(&literal(first, None, path)).unwrap(),
                    literal(first, None, "_"),
                );
            }
            for first in [0x40, 0x00, 0x10] {
                assert_eq!(
                    rewritten(&literal(first, Some(NAME), path)).unwrap(),
                    literal(first, Some(NAME), "_"),
                );
            }
            let mut huffman = vec![0x40, HUFFMAN | 8];
            huffman.extend_from_slice(NAME_HUFFMAN);
            let mut wanted = huffman.clone();
            wanted.extend_from_slice(b"\x01_");
            huffman.push(u8::try_from(path.len()).unwrap());
            huffman.extend_from_slice(path.as_bytes());
            assert_eq!(rewritten(&huffman).unwrap(), wanted);
        }
    }

    /// RFC 7541, appendix C.4.1: `www.example.com`, Huffman-coded.
    #[test]
    fn a_huffman_coded_authority_is_replaced() {
        let block = [
            0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab,
            0x90, 0xf4, 0xff,
        ];
        assert_eq!(
            rewritten(&block).unwrap(),
            [0x82, 0x86, 0x84, 0x41, 1, b'_']
        );
    }

    #[test]
    fn everything_else_stays_as_it_was() {
        let mut block = vec![0x82, 0xbe, 0xff, 0x80, 0x01, 0x3f, 0xe1, 0x1f];
        block.extend(literal(0x44, None, "/SpiffeWorkloadAPI/FetchX509SVID"));
        block.extend(literal(0x40, Some(b"workload.spiffe.io"), "true"));
        block.extend(literal(0x40, Some(b"host"), "/run/agent.sock"));
        block.extend(literal(0x7e, None, "a name from the dynamic table"));
        block.extend(literal(0x41, None, ""));
        assert_eq!(rewritten(&block).unwrap(), block);
    }

    #[test]
    fn what_is_cut_short_is_not_well_formed() {
        let block = literal(0x41, None, "/run/handfast/agent.sock");
        for length in 1..block.len() {
            assert_eq!(rewritten(&block[..length]), None, "{length}");
        }
        assert_eq!(rewritten(&[0x41, 0x7f]), None);
        assert_eq!(rewritten(&[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
