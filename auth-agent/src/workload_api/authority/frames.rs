//! HTTP/2 frames (RFC 9113, section 4) as they come in pieces: header blocks are taken apart, the rest passes.

use super::block;

/// The longest frame that the server takes: HTTP/2's own default, which it does not raise.
const MAX_FRAME: usize = 16_384;
/// A header block of more than this is left to the server, which refuses it.
const MAX_BLOCK: usize = 64 * 1024;
/// What a client says before its first frame (RFC 9113, 3.4).
const PREFACE: usize = 24;
const HEAD: usize = 9;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x04;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;

/// Rewrites what a client sends, piece by piece. Holds back at most one header block.
#[derive(Debug)]
pub struct Rewriter {
    state: State,
    /// A frame's head as far as it came; with a header block, all of its frames as they came.
    held: Vec<u8>,
    /// Where the current frame begins in `held`.
    start: usize,
    /// A header block that goes on.
    open: Option<Block>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// So many bytes concern us not; then comes a frame.
    Pass(usize),
    /// A frame's head.
    Head,
    /// The payload of a frame of headers.
    Payload(Head),
    /// Something that is not HTTP/2: no more looking.
    Opaque,
}

/// A frame's head (RFC 9113, 4.1).
#[derive(Debug, Clone, Copy)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

#[derive(Debug)]
struct Block {
    flags: u8,
    stream: [u8; 4],
    priority: Vec<u8>,
    fragments: Vec<u8>,
}

impl Default for Rewriter {
    fn default() -> Self {
        Self {
            state: State::Pass(PREFACE),
            held: Vec::new(),
            start: 0,
            open: None,
        }
    }
}

impl Rewriter {
    /// Takes what the client sent next, and writes to `out` what the server shall read.
    pub fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            match self.state {
                State::Opaque => {
                    out.extend_from_slice(input);
                    return;
                }
                State::Pass(left) => {
                    let (passed, rest) = input.split_at(left.min(input.len()));
                    out.extend_from_slice(passed);
                    input = rest;
                    self.state = pass(left - passed.len());
                }
                State::Head => {
                    input = self.hold(input, HEAD);
                    if let Some(head) = self.held.get(self.start..).and_then(Head::read) {
                        self.begin(head, out);
                    }
                }
                State::Payload(head) => {
                    input = self.hold(input, HEAD + head.length);
                    if self.held.len() - self.start == HEAD + head.length {
                        self.end(head, out);
                    }
                }
            }
        }
    }

    /// The client has said its last: nothing more is held back.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.open = None;
        self.state = State::Opaque;
    }

    /// Holds of `input` until the current frame has `length` bytes; gives back the rest.
    fn hold<'a>(&mut self, input: &'a [u8], length: usize) -> &'a [u8] {
        let wanted = (self.start + length).saturating_sub(self.held.len());
        let (taken, rest) = input.split_at(wanted.min(input.len()));
        self.held.extend_from_slice(taken);
        rest
    }

    /// What becomes of a frame whose head is known.
    fn begin(&mut self, head: Head, out: &mut Vec<u8>) {
        let so_far = self
            .open
            .as_ref()
            .map(|open| (open.stream, open.fragments.len()));
        match (so_far, head.kind) {
            (None, kind) if kind != HEADERS && kind != CONTINUATION => {
                out.append(&mut self.held);
                self.state = pass(head.length);
            }
            (None, HEADERS) if head.length <= MAX_FRAME => self.payload(head, out),
            (Some((stream, length)), CONTINUATION)
                if stream == head.stream
                    && head.length <= MAX_FRAME
                    && length + head.length <= MAX_BLOCK
                    // Empty ones too take room.
                    && self.held.len() <= MAX_BLOCK + MAX_FRAME =>
            {
                self.payload(head, out);
            }
            // No client may say this, and the server will tell it so.
            _ => self.finish(out),
        }
    }

    fn payload(&mut self, head: Head, out: &mut Vec<u8>) {
        self.state = State::Payload(head);
        if head.length == 0 {
            self.end(head, out);
        }
    }

    /// A frame of headers is complete.
    fn end(&mut self, head: Head, out: &mut Vec<u8>) {
        let payload = self.held.get(self.start + HEAD..).unwrap_or_default();
        let block = match self.open.take() {
            None => Block::open(head, payload),
            Some(mut open) => {
                open.fragments.extend_from_slice(payload);
                Some(open)
            }
        };
        let Some(block) = block else {
            return self.finish(out);
        };
        if head.flags & END_HEADERS == 0 {
            self.open = Some(block);
            self.start = self.held.len();
            self.state = State::Head;
            return;
        }
        match block.rewritten() {
            Some(frames) => {
                out.extend_from_slice(&frames);
                self.held.clear();
                self.start = 0;
                self.state = State::Head;
            }
            None => self.finish(out),
        }
    }
}

fn pass(left: usize) -> State {
    if left == 0 {
        State::Head
    } else {
        State::Pass(left)
    }
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Self> {
        let &[l1, l2, l3, kind, flags, s1, s2, s3, s4] = bytes.first_chunk::<HEAD>()?;
        let length = u32::from_be_bytes([0, l1, l2, l3]);
        Some(Self {
            length: usize::try_from(length).ok()?,
            kind,
            flags,
            stream: [s1, s2, s3, s4],
        })
    }

    fn write(self, out: &mut Vec<u8>) -> Option<()> {
        let [_, length @ ..] = u32::try_from(self.length).ok()?.to_be_bytes();
        out.extend_from_slice(&length);
        out.extend_from_slice(&[self.kind, self.flags]);
        out.extend_from_slice(&self.stream);
        Some(())
    }
}

impl Block {
    /// From a frame of HEADERS (RFC 9113, 6.2), without its padding.
    fn open(head: Head, payload: &[u8]) -> Option<Self> {
        let mut rest = payload;
        let mut padding = 0;
        if head.flags & PADDED != 0 {
            let (length, after) = rest.split_first()?;
            padding = usize::from(*length);
            rest = after;
        }
        let priority = if head.flags & PRIORITY != 0 {
            PRIORITY_BYTES
        } else {
            0
        };
        let (priority, rest) = rest.split_at_checked(priority)?;
        let fragments = rest.get(..rest.len().checked_sub(padding)?)?;
        Some(Self {
            flags: head.flags & !(PADDED | END_HEADERS),
            stream: head.stream,
            priority: priority.to_vec(),
            fragments: fragments.to_vec(),
        })
    }

    /// The block's frames with another authority, no more of them than there were bytes for.
    fn rewritten(&self) -> Option<Vec<u8>> {
        let mut payload = self.priority.clone();
        block::rewrite(&self.fragments, &mut payload)?;
        let mut out = Vec::with_capacity(payload.len() + HEAD);
        let (mut kind, mut flags) = (HEADERS, self.flags);
        let mut rest = payload.as_slice();
        loop {
            let (chunk, after) = rest.split_at(rest.len().min(MAX_FRAME));
            if after.is_empty() {
                flags |= END_HEADERS;
            }
            let head = Head {
                length: chunk.len(),
                kind,
                flags,
                stream: self.stream,
            };
            head.write(&mut out)?;
            out.extend_from_slice(chunk);
            if after.is_empty() {
                return Some(out);
            }
            rest = after;
            (kind, flags) = (CONTINUATION, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE_BYTES: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    /// `:authority: /run/agent.sock`, then `:method: GET`.
    const BLOCK: &[u8] = b"\x41\x0f/run/agent.sock\x82";
    const WANTED: &[u8] = b"\x41\x01_\x82";

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let head = Head {
            length: payload.len(),
            kind,
            flags,
            stream: [0, 0, 0, stream],
        };
        head.write(&mut out).unwrap();
        out.extend_from_slice(payload);
        out
    }

    /// All of it in pieces of `size` bytes.
    fn fed(bytes: &[u8], size: usize) -> Vec<u8> {
        let mut rewriter = Rewriter::default();
        let mut out = Vec::new();
        for piece in bytes.chunks(size) {
            rewriter.feed(piece, &mut out);
        }
        rewriter.finish(&mut out);
        out
    }

    fn becomes(frames: &[Vec<u8>], wanted: &[Vec<u8>]) {
        let input = [PREFACE_BYTES, &frames.concat()].concat();
        let wanted = [PREFACE_BYTES, &wanted.concat()].concat();
        for size in [1, 2, 7, 4096] {
            assert_eq!(fed(&input, size), wanted, "in pieces of {size}");
        }
    }

    #[test]
    fn headers_are_rewritten_and_other_frames_pass() {
        let settings = frame(4, 0, 0, &[0, 3, 0, 0, 0, 9]);
        let data = frame(0, 1, 1, b"\x41\x0f/run/agent.sock");
        let ping = frame(4, 1, 0, &[]);
        becomes(
            &[
                settings.clone(),
                frame(HEADERS, 4, 1, BLOCK),
                data.clone(),
                ping.clone(),
            ],
            &[settings, frame(HEADERS, 4, 1, WANTED), data, ping],
        );
    }

    #[test]
    fn padding_goes_and_priority_stays() {
        let payload = [&[3], &[0, 0, 0, 0, 15][..], BLOCK, &[0; 3]].concat();
        let wanted = [&[0, 0, 0, 0, 15][..], WANTED].concat();
        becomes(
            &[frame(HEADERS, 0x2d, 3, &payload)],
            &[frame(HEADERS, 0x25, 3, &wanted)],
        );
    }

    #[test]
    fn a_block_in_several_frames_is_one_block() {
        let (first, rest) = BLOCK.split_at(5);
        let frames = [
            frame(HEADERS, 1, 1, first),
            frame(CONTINUATION, 0, 1, &[]),
            frame(CONTINUATION, 4, 1, rest),
        ];
        becomes(&frames, &[frame(HEADERS, 5, 1, WANTED)]);
    }

    #[test]
    fn a_block_longer_than_a_frame_goes_on_in_the_next() {
        let mut block = BLOCK.to_vec();
        block.extend(std::iter::repeat_n(0x82, 20_000));
        let (first, rest) = block.split_at(MAX_FRAME);
        let mut wanted = WANTED.to_vec();
        wanted.extend(std::iter::repeat_n(0x82, 20_000));
        let (wanted, wanted_rest) = wanted.split_at(MAX_FRAME);
        becomes(
            &[frame(HEADERS, 0, 1, first), frame(CONTINUATION, 4, 1, rest)],
            &[
                frame(HEADERS, 0, 1, wanted),
                frame(CONTINUATION, 4, 1, wanted_rest),
            ],
        );
    }

    #[test]
    fn frames_without_end_and_without_content_are_not_held_back_for_ever() {
        let mut rewriter = Rewriter::default();
        let mut out = Vec::new();
        rewriter.feed(PREFACE_BYTES, &mut out);
        rewriter.feed(&frame(HEADERS, 0, 1, BLOCK), &mut out);
        let empty = frame(CONTINUATION, 0, 1, &[]);
        for _ in 0..100_000 {
            rewriter.feed(&empty, &mut out);
            assert!(rewriter.held.len() <= MAX_BLOCK + 2 * MAX_FRAME);
            out.clear();
        }
    }

    #[test]
    fn what_no_client_may_say_passes_untouched_for_the_server_to_judge() {
        let begun = frame(HEADERS, 0, 1, BLOCK);
        let huge: Vec<Vec<u8>> = std::iter::once(begun.clone())
            .chain(std::iter::repeat_n(
                frame(CONTINUATION, 0, 1, &[0x82; 16_000]),
                6,
            ))
            .collect();
        let illegal = [
            vec![frame(CONTINUATION, 4, 1, BLOCK)],
            vec![begun.clone(), frame(0, 0, 1, BLOCK)],
            vec![begun.clone(), frame(CONTINUATION, 4, 3, BLOCK)],
            vec![begun.clone(), frame(HEADERS, 4, 1, BLOCK)],
            vec![frame(HEADERS, 4, 1, &vec![0x82; MAX_FRAME + 1])],
            vec![frame(HEADERS, 0x0c, 1, &[200, 0x82])],
            vec![frame(HEADERS, 0x24, 1, &[1, 2])],
            vec![frame(HEADERS, 4, 1, b"\x41\x0f/run")],
            vec![begun],
            huge,
            vec![b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()],
        ];
        for frames in illegal {
            becomes(&frames, &frames);
        }
    }
}
