//! A caller that speaks HTTP/2 by hand: what no library would send, and what each one sends, byte by byte.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// `:method: POST`, `:scheme: http`, by their numbers in the static table.
const POST_HTTP: &[u8] = &[0x83, 0x86];

pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// How a stream of ours ended, or that it did not.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A message came.
    Message(Vec<u8>),
    /// It ended with headers alone; what could be read of them.
    Ended(String),
    /// RST_STREAM with this code.
    Reset(u32),
}

pub struct Raw {
    socket: UnixStream,
    next: u32,
}

impl Raw {
    pub async fn connect(path: &Path) -> Self {
        let mut socket = UnixStream::connect(path).await.unwrap();
        socket.write_all(PREFACE).await.unwrap();
        let mut raw = Self { socket, next: 1 };
        raw.send(SETTINGS, 0, 0, &[]).await;
        raw
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.socket.write_all(&frame).await.unwrap();
    }

    /// Headers of a call of `method`; `authority` is a header field as a client encodes it. Returns the stream.
    pub async fn headers(&mut self, method: &str, authority: &[u8]) -> u32 {
        let mut block = POST_HTTP.to_vec();
        block.extend_from_slice(&literal(0x04, b"", method.as_bytes()));
        block.extend_from_slice(authority);
        block.extend_from_slice(&literal(0, b"workload.spiffe.io", b"true"));
        block.extend_from_slice(&literal(0, b"content-type", b"application/grpc"));
        block.extend_from_slice(&literal(0, b"te", b"trailers"));
        let stream = self.next;
        self.next += 2;
        self.send(HEADERS, END_HEADERS, stream, &block).await;
        stream
    }

    /// A message and the end of the request.
    pub async fn message(&mut self, stream: u32, message: &[u8]) {
        let mut framed = vec![0];
        framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend_from_slice(message);
        let mut pieces = framed.chunks(16 << 10).peekable();
        while let Some(piece) = pieces.next() {
            let last = if pieces.peek().is_none() {
                END_STREAM
            } else {
                0
            };
            self.send(DATA, last, stream, piece).await;
        }
    }

    /// The next frame that says something, within twenty seconds; settings are acknowledged by the way.
    pub async fn frame(&mut self) -> Frame {
        loop {
            let reading = tokio::time::timeout(Duration::from_secs(20), self.read());
            let frame = reading.await.expect("a frame within twenty seconds");
            if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                self.send(SETTINGS, ACK, 0, &[]).await;
            } else if frame.stream != 0 {
                return frame;
            }
        }
    }

    async fn read(&mut self) -> Frame {
        let mut head = [0; 9];
        self.socket.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.socket.read_exact(&mut payload).await.unwrap();
        Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]),
            payload,
        }
    }

    /// What becomes of a stream: its first message, or its end.
    pub async fn outcome(&mut self, stream: u32) -> Outcome {
        let mut data = Vec::new();
        loop {
            let frame = self.frame().await;
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                RST_STREAM => {
                    let code: [u8; 4] = frame.payload[..4].try_into().unwrap();
                    return Outcome::Reset(u32::from_be_bytes(code));
                }
                HEADERS if frame.flags & END_STREAM != 0 => {
                    let text = String::from_utf8_lossy(&frame.payload).into_owned();
                    return Outcome::Ended(text);
                }
                DATA => data.extend_from_slice(&frame.payload),
                _ => {}
            }
            if let Some((head, message)) = data.split_at_checked(5) {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if message.len() >= length {
                    return Outcome::Message(message[..length].to_vec());
                }
            }
        }
    }
}

/// A literal header field (RFC 7541 6.2): its first byte, which may name an indexed name, and otherwise its name.
pub fn literal(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut field = vec![first];
    let named = first & 0x0f == 0;
    for part in named.then_some(name).into_iter().chain([value]) {
        integer(&mut field, 0, 7, part.len());
        field.extend_from_slice(part);
    }
    field
}

/// RFC 7541 5.1.
pub fn integer(out: &mut Vec<u8>, first: u8, prefix: u32, mut value: usize) {
    let most = (1 << prefix) - 1;
    if value < most {
        out.push(first | u8::try_from(value).unwrap());
        return;
    }
    out.push(first | u8::try_from(most).unwrap());
    value -= most;
    while value >= 128 {
        out.push(u8::try_from(value % 128).unwrap() | 0x80);
        value /= 128;
    }
    out.push(u8::try_from(value).unwrap());
}
