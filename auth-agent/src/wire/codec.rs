//! Frames to bytes and back. Everything that a peer sends is checked here, once.

use std::net::{IpAddr, Ipv6Addr};

use prost::Message;

use super::frame::{Frame, FrameError, Hello};
use super::message as msg;
use super::types::{
    BootId, LeafHash, MAX_ANSWER, MAX_AUTHENTICATOR, MAX_DENY_LIST, MAX_FRAME, MAX_NODE_ID,
    MAX_QUESTION, MAX_REQUESTS, Reason, TunnelKind,
};

/// Kind numbers, for ever. The name stands in errors.
mod kind {
    pub(super) const HELLO: u32 = 1;
    pub(super) const GRANT: u32 = 2;
    pub(super) const PROOF: u32 = 3;
    pub(super) const PROOF_ACCEPTED: u32 = 4;
    pub(super) const PROOF_REFUSED: u32 = 5;
    pub(super) const ANNOUNCE: u32 = 6;
    pub(super) const ANNOUNCED: u32 = 7;
    pub(super) const ANNOUNCE_REFUSED: u32 = 8;
    pub(super) const WITHDRAW: u32 = 9;
    pub(super) const WITHDRAWN: u32 = 10;
    pub(super) const RESOLVE: u32 = 11;
    pub(super) const RESOLVE_REFUSED: u32 = 12;
    pub(super) const TUNNEL_READY: u32 = 13;
    pub(super) const READY: u32 = 14;
    pub(super) const DENY_LIST: u32 = 15;
    pub(super) const PING: u32 = 16;
    pub(super) const PONG: u32 = 17;
    pub(super) const GOODBYE: u32 = 18;
    pub(super) const TUNNEL_KEY: u32 = 19;
    pub(super) const ASK: u32 = 20;
    pub(super) const ANSWER: u32 = 21;
}

impl Frame {
    /// The frame's name, as errors, counters and logs have it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Grant { .. } => "grant",
            Self::Proof { .. } => "proof",
            Self::ProofAccepted { .. } => "proof-accepted",
            Self::ProofRefused { .. } => "proof-refused",
            Self::Announce { .. } => "announce",
            Self::Announced { .. } => "announced",
            Self::AnnounceRefused { .. } => "announce-refused",
            Self::Withdraw { .. } => "withdraw",
            Self::Withdrawn { .. } => "withdrawn",
            Self::Resolve { .. } => "resolve",
            Self::ResolveRefused { .. } => "resolve-refused",
            Self::TunnelKey { .. } => "tunnel-key",
            Self::TunnelReady => "tunnel-ready",
            Self::Ready => "ready",
            Self::DenyList { .. } => "deny-list",
            Self::Ask { .. } => "ask",
            Self::Answer { .. } => "answer",
            Self::Ping => "ping",
            Self::Pong => "pong",
            Self::Goodbye { .. } => "goodbye",
        }
    }

    /// The frame as it goes on the wire, its four bytes of length in front.
    ///
    /// # Errors
    /// What [`Frame::decode`] would refuse on the other side is refused here already.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let (kind, body) = self.body()?;
        let envelope = msg::Envelope {
            kind,
            optional: matches!(self, Self::Ask { .. } | Self::Answer { .. }),
            body,
        };
        let length = envelope.encoded_len();
        if length > MAX_FRAME {
            return Err(FrameError::TooLarge(length));
        }
        let mut bytes = Vec::with_capacity(4 + length);
        bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(&envelope.encode_to_vec());
        Ok(bytes)
    }

    /// Reads one frame, without its length. `None` is an optional frame of a kind we do not know: skip it.
    ///
    /// # Errors
    /// [`FrameError`] for anything else than a legal frame; the connection ends.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        if bytes.len() > MAX_FRAME {
            return Err(FrameError::TooLarge(bytes.len()));
        }
        let msg::Envelope {
            kind,
            optional,
            body,
        } = read(bytes)?;
        let frame = match kind {
            kind::HELLO => Self::Hello(hello(read(&body)?)?),
            kind::GRANT => grant(read(&body)?)?,
            kind::PROOF => proof(read(&body)?)?,
            kind::PROOF_ACCEPTED => {
                let verdict: msg::ProofVerdict = read(&body)?;
                let leaf_hash = verdict.leaf_hash.unwrap_or_default();
                Self::ProofAccepted {
                    leaf_hash: leaf(leaf_hash, "proof-accepted")?,
                }
            }
            kind::PROOF_REFUSED => {
                let verdict: msg::ProofVerdict = read(&body)?;
                let leaf_hash = verdict.leaf_hash.map(|hash| leaf(hash, "proof-refused"));
                Self::ProofRefused {
                    leaf_hash: leaf_hash.transpose()?,
                    reason: reason(verdict.reason, "proof-refused")?,
                }
            }
            kind::ANNOUNCE..=kind::RESOLVE_REFUSED => about_address(kind, read(&body)?)?,
            kind::TUNNEL_KEY => Self::TunnelKey {
                tag: exact(read::<msg::TunnelKey>(&body)?.tag, "tunnel-key", "tag")?,
            },
            kind::TUNNEL_READY => empty(&body, Self::TunnelReady)?,
            kind::READY => empty(&body, Self::Ready)?,
            kind::DENY_LIST => {
                let msg::DenyList { bytes, more } = read(&body)?;
                sized(&bytes, 1, MAX_DENY_LIST, "deny-list", "bytes")?;
                Self::DenyList { bytes, more }
            }
            kind::ASK => {
                let msg::Asked { id, bytes } = read(&body)?;
                sized(&bytes, 1, MAX_QUESTION, "ask", "bytes")?;
                Self::Ask {
                    id,
                    question: bytes,
                }
            }
            kind::ANSWER => {
                let msg::Asked { id, bytes } = read(&body)?;
                sized(&bytes, 1, MAX_ANSWER, "answer", "bytes")?;
                Self::Answer { id, answer: bytes }
            }
            kind::PING => empty(&body, Self::Ping)?,
            kind::PONG => empty(&body, Self::Pong)?,
            kind::GOODBYE => {
                let text = read::<msg::Goodbye>(&body)?.reason;
                Self::Goodbye {
                    reason: reason(text, "goodbye")?,
                }
            }
            _ if optional => return Ok(None),
            unknown => return Err(FrameError::UnknownKind(unknown)),
        };
        Ok(Some(frame))
    }

    fn body(&self) -> Result<(u32, Vec<u8>), FrameError> {
        let name = self.name();
        let at = |kind, address: &IpAddr, fields: msg::Address| {
            let address = address_bytes(*address, name)?;
            Ok((kind, msg::Address { address, ..fields }.encode_to_vec()))
        };
        let numbered = |kind, address, generation: &u64| {
            at(
                kind,
                address,
                msg::Address {
                    generation: *generation,
                    ..Default::default()
                },
            )
        };
        match self {
            Self::Hello(hello) => Ok((kind::HELLO, hello_body(hello)?)),
            Self::Grant { requests } => {
                if requests.is_empty() || requests.len() > MAX_REQUESTS {
                    return Err(field(name, "requests", "too few or too many"));
                }
                Ok((
                    kind::GRANT,
                    msg::Grant {
                        requests: requests.concat(),
                    }
                    .encode_to_vec(),
                ))
            }
            Self::Proof {
                authenticator,
                request,
            } => {
                sized(authenticator, 1, MAX_AUTHENTICATOR, name, "authenticator")?;
                let request = request.map(|request| request.to_vec());
                let body = msg::Proof {
                    authenticator: authenticator.clone(),
                    request,
                };
                Ok((kind::PROOF, body.encode_to_vec()))
            }
            Self::ProofAccepted { leaf_hash } => {
                let leaf_hash = Some(leaf_hash.0.to_vec());
                let body = msg::ProofVerdict {
                    leaf_hash,
                    reason: String::new(),
                };
                Ok((kind::PROOF_ACCEPTED, body.encode_to_vec()))
            }
            Self::ProofRefused { leaf_hash, reason } => {
                let leaf_hash = leaf_hash.map(|hash| hash.0.to_vec());
                let body = msg::ProofVerdict {
                    leaf_hash,
                    reason: reason.to_string(),
                };
                Ok((kind::PROOF_REFUSED, body.encode_to_vec()))
            }
            Self::Announce {
                address,
                leaf_hash,
                generation,
                boot_id,
            } => {
                let fields = msg::Address {
                    leaf_hash: leaf_hash.0.to_vec(),
                    generation: *generation,
                    boot_id: boot_id.0.to_vec(),
                    ..Default::default()
                };
                at(kind::ANNOUNCE, address, fields)
            }
            Self::Announced {
                address,
                generation,
            } => numbered(kind::ANNOUNCED, address, generation),
            Self::AnnounceRefused {
                address,
                generation,
                reason,
            } => {
                let fields = msg::Address {
                    generation: *generation,
                    reason: reason.to_string(),
                    ..Default::default()
                };
                at(kind::ANNOUNCE_REFUSED, address, fields)
            }
            Self::Withdraw {
                address,
                generation,
            } => numbered(kind::WITHDRAW, address, generation),
            Self::Withdrawn {
                address,
                generation,
            } => numbered(kind::WITHDRAWN, address, generation),
            Self::Resolve { address, leaf_hash } => {
                let leaf_hash = leaf_hash.0.to_vec();
                at(
                    kind::RESOLVE,
                    address,
                    msg::Address {
                        leaf_hash,
                        ..Default::default()
                    },
                )
            }
            Self::ResolveRefused { address } => {
                at(kind::RESOLVE_REFUSED, address, msg::Address::default())
            }
            Self::TunnelKey { tag } => {
                let body = msg::TunnelKey { tag: tag.to_vec() };
                Ok((kind::TUNNEL_KEY, body.encode_to_vec()))
            }
            Self::TunnelReady => Ok((kind::TUNNEL_READY, Vec::new())),
            Self::Ready => Ok((kind::READY, Vec::new())),
            Self::DenyList { bytes, more } => {
                sized(bytes, 1, MAX_DENY_LIST, name, "bytes")?;
                Ok((
                    kind::DENY_LIST,
                    msg::DenyList {
                        bytes: bytes.clone(),
                        more: *more,
                    }
                    .encode_to_vec(),
                ))
            }
            Self::Ask { id, question } => {
                sized(question, 1, MAX_QUESTION, name, "bytes")?;
                let (id, bytes) = (*id, question.clone());
                Ok((kind::ASK, msg::Asked { id, bytes }.encode_to_vec()))
            }
            Self::Answer { id, answer } => {
                sized(answer, 1, MAX_ANSWER, name, "bytes")?;
                let (id, bytes) = (*id, answer.clone());
                Ok((kind::ANSWER, msg::Asked { id, bytes }.encode_to_vec()))
            }
            Self::Ping => Ok((kind::PING, Vec::new())),
            Self::Pong => Ok((kind::PONG, Vec::new())),
            Self::Goodbye { reason } => {
                let body = msg::Goodbye {
                    reason: reason.to_string(),
                };
                Ok((kind::GOODBYE, body.encode_to_vec()))
            }
        }
    }
}

fn hello(body: msg::Hello) -> Result<Hello, FrameError> {
    const NAME: &str = "hello";
    Ok(Hello {
        version: body.version,
        oldest_version: body.oldest_version,
        features: body.features,
        node_id: node_id(body.node_id)?,
        boot_id: BootId(exact(body.boot_id, NAME, "boot_id")?),
        tunnel_kind: TunnelKind::from_wire(body.tunnel_kind).ok_or(field(
            NAME,
            "tunnel_kind",
            "missing",
        ))?,
        tunnel_key: exact(body.tunnel_key, NAME, "tunnel_key")?,
        tunnel_port: u16::try_from(body.tunnel_port)
            .ok()
            .filter(|port| *port != 0)
            .ok_or(field(NAME, "tunnel_port", "no port"))?,
        deny_number: body.deny_number,
        endpoints: body.endpoints,
        lineage: body.lineage,
    })
}

fn hello_body(hello: &Hello) -> Result<Vec<u8>, FrameError> {
    if hello.tunnel_port == 0 {
        return Err(field("hello", "tunnel_port", "no port"));
    }
    if hello.tunnel_kind.on_wire() == 0 {
        return Err(field("hello", "tunnel_kind", "missing"));
    }
    let body = msg::Hello {
        version: hello.version,
        oldest_version: hello.oldest_version,
        features: hello.features,
        node_id: node_id(hello.node_id.clone())?,
        boot_id: hello.boot_id.0.to_vec(),
        tunnel_kind: hello.tunnel_kind.on_wire(),
        tunnel_key: hello.tunnel_key.to_vec(),
        tunnel_port: u32::from(hello.tunnel_port),
        deny_number: hello.deny_number,
        endpoints: hello.endpoints,
        lineage: hello.lineage,
    };
    Ok(body.encode_to_vec())
}

/// Only the one canonical spelling of a SPIFFE ID, since it is compared byte by byte.
fn node_id(text: String) -> Result<String, FrameError> {
    let canonical = text.len() <= MAX_NODE_ID
        && spiffe::SpiffeId::new(&text).is_ok_and(|id| id.to_string() == text);
    if canonical {
        Ok(text)
    } else {
        Err(field("hello", "node_id", "not a SPIFFE ID"))
    }
}

fn grant(body: msg::Grant) -> Result<Frame, FrameError> {
    let (requests, rest) = body.requests.as_chunks::<32>();
    if requests.is_empty() || requests.len() > MAX_REQUESTS || !rest.is_empty() {
        return Err(field("grant", "requests", "too few, too many or cut off"));
    }
    Ok(Frame::Grant {
        requests: requests.to_vec(),
    })
}

fn proof(body: msg::Proof) -> Result<Frame, FrameError> {
    sized(
        &body.authenticator,
        1,
        MAX_AUTHENTICATOR,
        "proof",
        "authenticator",
    )?;
    let request = body
        .request
        .map(|request| exact(request, "proof", "request"));
    Ok(Frame::Proof {
        authenticator: body.authenticator,
        request: request.transpose()?,
    })
}

fn about_address(kind: u32, body: msg::Address) -> Result<Frame, FrameError> {
    let name = address_name(kind);
    let address = address(&body.address, name)?;
    let generation = body.generation;
    Ok(match kind {
        kind::ANNOUNCE => Frame::Announce {
            address,
            leaf_hash: leaf(body.leaf_hash, name)?,
            generation,
            boot_id: BootId(exact(body.boot_id, name, "boot_id")?),
        },
        kind::ANNOUNCED => Frame::Announced {
            address,
            generation,
        },
        kind::ANNOUNCE_REFUSED => Frame::AnnounceRefused {
            address,
            generation,
            reason: reason(body.reason, name)?,
        },
        kind::WITHDRAW => Frame::Withdraw {
            address,
            generation,
        },
        kind::WITHDRAWN => Frame::Withdrawn {
            address,
            generation,
        },
        kind::RESOLVE => Frame::Resolve {
            address,
            leaf_hash: leaf(body.leaf_hash, name)?,
        },
        kind::RESOLVE_REFUSED => Frame::ResolveRefused { address },
        unknown => return Err(FrameError::UnknownKind(unknown)),
    })
}

fn address_name(kind: u32) -> &'static str {
    match kind {
        kind::ANNOUNCE => "announce",
        kind::ANNOUNCED => "announced",
        kind::ANNOUNCE_REFUSED => "announce-refused",
        kind::WITHDRAW => "withdraw",
        kind::WITHDRAWN => "withdrawn",
        kind::RESOLVE => "resolve",
        _ => "resolve-refused",
    }
}

fn address(bytes: &[u8], frame: &'static str) -> Result<IpAddr, FrameError> {
    let address = if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(v4)
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        IpAddr::from(v6)
    } else {
        return Err(field(frame, "address", "neither 4 nor 16 bytes"));
    };
    legal(address).map_err(|problem| field(frame, "address", problem))?;
    Ok(address)
}

fn address_bytes(address: IpAddr, frame: &'static str) -> Result<Vec<u8>, FrameError> {
    legal(address).map_err(|problem| field(frame, "address", problem))?;
    Ok(match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    })
}

/// One address has one spelling, and a workload never has one of these.
fn legal(address: IpAddr) -> Result<(), &'static str> {
    let mapped = |v6: Ipv6Addr| v6.to_ipv4_mapped().is_some();
    match address {
        _ if address.is_unspecified() => Err("unspecified"),
        _ if address.is_multicast() => Err("multicast"),
        _ if address.is_loopback() => Err("loopback"),
        IpAddr::V4(v4) if v4.is_broadcast() => Err("broadcast"),
        IpAddr::V6(v6) if mapped(v6) => Err("an IPv4 address mapped into IPv6"),
        _ => Ok(()),
    }
}

fn leaf(bytes: Vec<u8>, frame: &'static str) -> Result<LeafHash, FrameError> {
    Ok(LeafHash(exact(bytes, frame, "leaf_hash")?))
}

fn reason(text: String, frame: &'static str) -> Result<Reason, FrameError> {
    Reason::parse(text).ok_or(field(frame, "reason", "too long or not printable"))
}

fn exact<const N: usize>(
    bytes: Vec<u8>,
    frame: &'static str,
    name: &'static str,
) -> Result<[u8; N], FrameError> {
    bytes
        .try_into()
        .map_err(|_| field(frame, name, "of the wrong size"))
}

fn sized(
    bytes: &[u8],
    least: usize,
    most: usize,
    frame: &'static str,
    name: &'static str,
) -> Result<(), FrameError> {
    if (least..=most).contains(&bytes.len()) {
        Ok(())
    } else {
        Err(field(frame, name, "empty or too large"))
    }
}

fn empty(body: &[u8], frame: Frame) -> Result<Frame, FrameError> {
    read::<msg::Empty>(body).map(|_| frame)
}

fn read<M: Message + Default>(bytes: &[u8]) -> Result<M, FrameError> {
    M::decode(bytes).map_err(|error| FrameError::Malformed(error.to_string()))
}

fn field(frame: &'static str, field: &'static str, problem: &'static str) -> FrameError {
    FrameError::Field {
        frame,
        field,
        problem,
    }
}
