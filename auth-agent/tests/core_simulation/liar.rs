//! A compromised node: it runs the agent, so that its sessions come far, and lies in every field of its frames.
//!
//! It has its own keys and certificates, what it has ever heard, and nothing else.

use std::net::IpAddr;

use handfast_agent::core::ConnId;
use handfast_agent::wire::{BootId, Frame, Hello, LeafHash, TunnelKind};

use super::authority::leaf;
use super::links::Sent;
use super::node::{Cover, Packet, six};
use super::proofs::Term;
use super::world::World;

impl World {
    /// In place of a frame, before it, or after it.
    pub fn lie(&mut self, index: usize, conn: ConnId, frame: Frame) {
        let lie = match self.rng.below(3) {
            0 => self.twist(index, frame.clone()),
            1 => self.invent(index, conn),
            _ => self.false_proof(index, conn),
        };
        self.say(|| format!("node {index} lies: {lie:?}"));
        let order = self.rng.below(4);
        if order == 1 {
            self.transmit(index, conn, Sent::Frame(frame.clone()));
        }
        if let Some(lie) = lie {
            self.transmit(index, conn, Sent::Frame(lie));
        } else {
            self.transmit(index, conn, Sent::Garbage);
        }
        if order > 1 {
            self.transmit(index, conn, Sent::Frame(frame));
        }
    }

    /// Any address: its own, another node's, one that nobody has, or one outside of the mesh.
    fn any_address(&mut self, index: usize) -> IpAddr {
        let nodes = self.nodes.len() as u64 + 1;
        let node = match self.rng.below(3) {
            0 => index as u64,
            _ => self.rng.below(nodes),
        };
        let (node, host) = (u8::try_from(node).unwrap(), self.rng.below(4));
        match self.rng.below(8) {
            0 => IpAddr::from([8, 8, 8, 8]),
            1 => six(usize::from(node), u8::try_from(host).unwrap()),
            _ => IpAddr::from([10, node, 0, u8::try_from(host).unwrap()]),
        }
    }

    /// A certificate's name: its own or anybody's.
    fn any_leaf(&mut self, index: usize) -> LeafHash {
        let own = self.rng.chance(50);
        let all = self.ca.certificates.values();
        let serials: Vec<u64> = all
            .filter(|of| !own || of.owner == index)
            .map(|of| of.serial)
            .collect();
        leaf(self.rng.pick(&serials).unwrap_or(0))
    }

    fn any_number(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => 0,
            1 => u64::MAX,
            2 => self.rng.below(100),
            // As generations are: milliseconds of a boot clock.
            _ => self.rng.below(1_000_000),
        }
    }

    fn any_boot(&mut self, index: usize) -> BootId {
        let other = self.rng.index(self.nodes.len());
        match self.rng.chance(50) {
            true => self.nodes[other].boot_id(),
            false => BootId([u8::try_from(index).unwrap(); 16]),
        }
    }

    /// The frame, with one field that is not true.
    fn twist(&mut self, index: usize, frame: Frame) -> Option<Frame> {
        Some(match frame {
            Frame::Hello(hello) => Frame::Hello(self.twist_hello(index, hello)),
            Frame::Announce {
                mut address,
                mut leaf_hash,
                mut generation,
                mut boot_id,
            } => {
                match self.rng.below(5) {
                    0 => leaf_hash = self.any_leaf(index),
                    1 => generation = self.any_number(),
                    2 => boot_id = self.any_boot(index),
                    _ => address = self.any_address(index),
                }
                Frame::Announce {
                    address,
                    leaf_hash,
                    generation,
                    boot_id,
                }
            }
            Frame::Announced {
                address,
                generation,
            } => match self.rng.below(3) {
                0 => Frame::Announced {
                    address: self.any_address(index),
                    generation,
                },
                1 => Frame::Announced {
                    address,
                    generation: self.any_number(),
                },
                _ => Frame::AnnounceRefused {
                    address,
                    generation,
                    reason: "no".into(),
                },
            },
            Frame::Withdraw { generation, .. } => Frame::Withdraw {
                address: self.any_address(index),
                generation,
            },
            Frame::Withdrawn { address, .. } => Frame::Withdrawn {
                address,
                generation: self.any_number(),
            },
            Frame::ProofAccepted { leaf_hash } => match self.rng.below(2) {
                0 => Frame::ProofAccepted {
                    leaf_hash: self.any_leaf(index),
                },
                _ => Frame::ProofRefused {
                    leaf_hash: Some(leaf_hash),
                    reason: "no".into(),
                },
            },
            Frame::Resolve { .. } => Frame::Resolve {
                address: self.any_address(index),
                leaf_hash: self.any_leaf(index),
            },
            Frame::Proof {
                authenticator,
                request,
            } => Frame::Proof {
                authenticator,
                request: request.map_or(Some([1; 32]), |_| None),
            },
            Frame::TunnelKey { tag } => Frame::TunnelKey {
                tag: tag.map(|byte| byte.wrapping_add(1)),
            },
            Frame::DenyList { .. } => Frame::DenyList {
                bytes: self.any_number().to_le_bytes().to_vec(),
                more: self.rng.chance(30),
            },
            _ => return None,
        })
    }

    fn twist_hello(&mut self, index: usize, mut hello: Hello) -> Hello {
        let other = self.rng.index(self.nodes.len());
        match self.rng.below(8) {
            6 => hello.tunnel_kind = TunnelKind::Other(3),
            7 => hello.oldest_version = u32::try_from(self.rng.below(4)).unwrap(),
            0 => hello.node_id.clone_from(&self.nodes[other].id),
            1 => hello.boot_id = self.any_boot(index),
            2 | 3 => hello.tunnel_key = self.nodes[other].tunnel_key(),
            4 => hello.deny_number = self.any_number(),
            _ => hello.version = u32::try_from(self.rng.below(3)).unwrap(),
        }
        hello
    }

    /// A frame that nothing called for.
    fn invent(&mut self, index: usize, conn: ConnId) -> Option<Frame> {
        let (address, generation) = (self.any_address(index), self.any_number());
        let leaf_hash = self.any_leaf(index);
        Some(match self.rng.below(16) {
            0 => Frame::Announce {
                address,
                leaf_hash,
                generation,
                boot_id: self.nodes[index].boot_id(),
            },
            1 => Frame::Announced {
                address,
                generation,
            },
            2 => Frame::Withdraw {
                address,
                generation,
            },
            3 => Frame::Withdrawn {
                address,
                generation,
            },
            4 => Frame::Resolve { address, leaf_hash },
            5 => Frame::ResolveRefused { address },
            6 => Frame::TunnelReady,
            7 => Frame::Ready,
            8 => Frame::ProofAccepted { leaf_hash },
            9 => Frame::ProofRefused {
                leaf_hash: None,
                reason: "no".into(),
            },
            10 => Frame::Grant {
                requests: self.contexts(index, conn),
            },
            11 => Frame::DenyList {
                bytes: self.rng.below(9).to_be_bytes().to_vec(),
                more: self.rng.chance(30),
            },
            13 => Frame::Ask {
                id: generation,
                question: vec![1],
            },
            14 => Frame::Answer {
                id: self.rng.below(20),
                answer: vec![1],
            },
            12 => Frame::Goodbye {
                reason: "lie".into(),
            },
            _ => return None,
        })
    }

    /// Contexts that others have granted to it: whoever answers one answers for them.
    fn contexts(&mut self, index: usize, conn: ConnId) -> Vec<[u8; 32]> {
        let heard: Vec<[u8; 32]> = self
            .proofs
            .terms
            .iter()
            .rev()
            .filter(|term| term.link != conn.0)
            .filter_map(|term| term.request)
            .take(2)
            .collect();
        let fresh = [u8::try_from(index).unwrap() + 100; 32];
        heard.into_iter().chain([fresh]).collect()
    }

    /// A proof that is none: heard elsewhere, or of a chain that is not its own.
    fn false_proof(&mut self, index: usize, conn: ConnId) -> Option<Frame> {
        let by_dialler = self.links.get(&conn.0)?.dialler == index;
        let peer = self.other_end(index, conn.0)?;
        let request = match by_dialler {
            true => Some(self.open_request(index, conn)?),
            false => None,
        };
        let authenticator = if self.rng.chance(50) {
            // Whatever was said on a connection of its own, by either end.
            let terms = self.proofs.terms.iter().enumerate();
            let heard = terms.filter(|(_, term)| self.other_end(index, term.link).is_some());
            let heard: Vec<usize> = heard.map(|(at, _)| at).collect();
            let at = self.rng.pick(&heard)?;
            self.proofs.replay(at)
        } else {
            let own = self.a_certificate(|owner| owner == index)?;
            let foreign = self.a_certificate(|owner| owner == peer || owner != index)?;
            let chain = match self.rng.below(3) {
                0 => vec![foreign],
                1 => vec![foreign, own],
                _ => vec![own, foreign],
            };
            self.proofs.make(Term {
                link: conn.0,
                by_dialler,
                request,
                chain,
                signer: own,
            })
        };
        Some(Frame::Proof {
            authenticator,
            request,
        })
    }

    /// A context that it has been granted on this connection and not used.
    fn open_request(&mut self, index: usize, conn: ConnId) -> Option<[u8; 32]> {
        let granted = self.nodes[index].granted.get_mut(&conn)?;
        granted.pop()
    }

    fn a_certificate(&mut self, whose: impl Fn(usize) -> bool) -> Option<u64> {
        let all = self.ca.certificates.values();
        let serials: Vec<u64> = all
            .filter(|of| whose(of.owner))
            .map(|of| of.serial)
            .collect();
        self.rng.pick(&serials)
    }

    /// A packet with whatever source it likes, through its tunnel to somebody.
    pub fn spoof(&mut self, index: usize) {
        let to = self.rng.index(self.nodes.len());
        if to == index {
            return;
        }
        let source = self.any_address(index);
        let host = 1 + u8::try_from(self.rng.below(2)).unwrap();
        let keys = Some((self.nodes[index].tunnel_key(), self.nodes[to].tunnel_key()));
        let packet = Packet {
            number: self.number(),
            source,
            destination: self.nodes[to].address(host),
            from: super::node::identity("liar"),
            from_node: index,
            to_node: to,
            meant: None,
            keys,
            cover: Cover::Liar,
        };
        self.launch(packet);
    }
}
