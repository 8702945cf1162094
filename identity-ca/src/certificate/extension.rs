//! The private extensions that bind a certificate to a node, its prefixes and labels.
//!
//! Both are non-critical, so that a verifier that does not know them sees a
//! plain X.509 certificate; handfast's own verifier requires them.
//!
//! ```text
//! arc           2.25.3417667401601528136   (a 63-bit random number: unique without a registry)
//! NodeBinding   arc.1.1  SEQUENCE { version INTEGER (1), name UTF8String, assignment INTEGER,
//!                                   prefixes SEQUENCE OF SEQUENCE { address OCTET STRING (4 or 16), length INTEGER } }
//! ProofBinding  arc.1.2  SEQUENCE { version INTEGER (1), node UTF8String,
//!                                   labels SEQUENCE OF SEQUENCE { key UTF8String, value UTF8String } }
//! proof usage   arc.2.1  the extended key usage of proof SVIDs, and of nothing else
//! ```

use std::net::IpAddr;

use ipnet::IpNet;
use yasna::{ASN1Error, ASN1ErrorKind, ASN1Result, BERReader, DERWriter};

use crate::NodeName;
use crate::model::{Labels, MAX_LABELS, MAX_LABELS_BYTES, check_labels};

const ARC: u64 = 3_417_667_401_601_528_136;

/// The OID of [`NodeBinding`].
pub(crate) const NODE_BINDING: &[u64] = &[2, 25, ARC, 1, 1];
/// The OID of [`ProofBinding`].
pub(crate) const PROOF_BINDING: &[u64] = &[2, 25, ARC, 1, 2];
/// The OID of the extended key usage of proof SVIDs.
pub(crate) const PROOF_USAGE: &[u64] = &[2, 25, ARC, 2, 1];

const VERSION: u64 = 1;
/// Prefixes of one node.
pub(crate) const MAX_PREFIXES: usize = 64;
const MAX_NODE_BINDING: usize = 4096;
// Every label may cost eight bytes of structure.
const MAX_PROOF_BINDING: usize = MAX_LABELS_BYTES + 8 * MAX_LABELS + 512;

/// What a node SVID says about its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeBinding {
    /// The node's name.
    pub name: NodeName,
    /// The addresses that its workloads may have.
    pub prefixes: Vec<IpNet>,
    /// Higher when a prefix was given anew.
    pub assignment: u64,
}

impl NodeBinding {
    /// The extension's content (DER).
    pub fn encode(&self) -> Vec<u8> {
        yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_u64(VERSION);
                writer.next().write_utf8_string(self.name.as_str());
                writer.next().write_u64(self.assignment);
                writer.next().write_sequence_of(|writer| {
                    for prefix in &self.prefixes {
                        write_prefix(writer.next(), prefix);
                    }
                });
            });
        })
    }

    /// Reads the extension's content; none if it is not exactly as it should be.
    pub fn decode(der: &[u8]) -> Option<Self> {
        if der.len() > MAX_NODE_BINDING {
            return None;
        }
        yasna::parse_der(der, |reader| {
            reader.read_sequence(|reader| {
                read_version(reader.next())?;
                let name = read_name(reader.next())?;
                let assignment = reader.next().read_u64()?;
                let prefixes = reader.next().collect_sequence_of(read_prefix)?;
                if prefixes.len() > MAX_PREFIXES {
                    return Err(invalid());
                }
                Ok(Self {
                    name,
                    prefixes,
                    assignment,
                })
            })
        })
        .ok()
    }
}

/// What a proof SVID says about its workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofBinding {
    /// The node whose agent holds the key.
    pub node: NodeName,
    /// The identity's labels.
    pub labels: Labels,
}

impl ProofBinding {
    /// The extension's content (DER).
    pub fn encode(&self) -> Vec<u8> {
        yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_u64(VERSION);
                writer.next().write_utf8_string(self.node.as_str());
                writer.next().write_sequence_of(|writer| {
                    for (key, value) in &self.labels {
                        writer.next().write_sequence(|writer| {
                            writer.next().write_utf8_string(key);
                            writer.next().write_utf8_string(value);
                        });
                    }
                });
            });
        })
    }

    /// Reads the extension's content; none if it is not exactly as it should be.
    pub fn decode(der: &[u8]) -> Option<Self> {
        if der.len() > MAX_PROOF_BINDING {
            return None;
        }
        yasna::parse_der(der, |reader| {
            reader.read_sequence(|reader| {
                read_version(reader.next())?;
                let node = read_name(reader.next())?;
                let pairs = reader.next().collect_sequence_of(|reader| {
                    reader.read_sequence(|reader| {
                        Ok((
                            reader.next().read_utf8string()?,
                            reader.next().read_utf8string()?,
                        ))
                    })
                })?;
                let count = pairs.len();
                let sorted = pairs.is_sorted_by(|a, b| a.0 < b.0);
                let labels: Labels = pairs.into_iter().collect();
                if !sorted || labels.len() != count || check_labels(&labels).is_err() {
                    return Err(invalid());
                }
                Ok(Self { node, labels })
            })
        })
        .ok()
    }
}

/// The content octets of an OID in DER: X.690 8.19.
pub(crate) fn oid_content(components: &[u64]) -> Vec<u8> {
    let (head, tail) = match components {
        [first, second, tail @ ..] => (first * 40 + second, tail),
        _ => return Vec::new(),
    };
    let mut content = Vec::new();
    for component in std::iter::once(&head).chain(tail) {
        let groups = (64 - component.leading_zeros()).div_ceil(7).max(1);
        for group in (0..groups).rev() {
            let more = if group > 0 { 0x80 } else { 0 };
            content.push(((component >> (7 * group)) & 0x7f) as u8 | more);
        }
    }
    content
}

fn read_version(reader: BERReader<'_, '_>) -> ASN1Result<()> {
    if reader.read_u64()? == VERSION {
        Ok(())
    } else {
        Err(invalid())
    }
}

fn read_name(reader: BERReader<'_, '_>) -> ASN1Result<NodeName> {
    reader.read_utf8string()?.parse().map_err(|_| invalid())
}

fn write_prefix(writer: DERWriter<'_>, prefix: &IpNet) {
    writer.write_sequence(|writer| {
        match prefix.network() {
            IpAddr::V4(address) => writer.next().write_bytes(&address.octets()),
            IpAddr::V6(address) => writer.next().write_bytes(&address.octets()),
        }
        writer.next().write_u8(prefix.prefix_len());
    });
}

fn read_prefix(reader: BERReader<'_, '_>) -> ASN1Result<IpNet> {
    reader.read_sequence(|reader| {
        let bytes = reader.next().read_bytes()?;
        let length = reader.next().read_u8()?;
        let address: IpAddr = if let Ok(four) = <[u8; 4]>::try_from(bytes.as_slice()) {
            four.into()
        } else if let Ok(sixteen) = <[u8; 16]>::try_from(bytes.as_slice()) {
            sixteen.into()
        } else {
            return Err(invalid());
        };
        let prefix = IpNet::new(address, length).map_err(|_| invalid())?;
        if prefix.trunc() == prefix {
            Ok(prefix)
        } else {
            Err(invalid())
        }
    })
}

fn invalid() -> ASN1Error {
    ASN1Error::new(ASN1ErrorKind::Invalid)
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn prefix() -> impl Strategy<Value = IpNet> {
        let four = (any::<[u8; 4]>(), 0u8..=32).prop_map(|(a, l)| IpNet::new(a.into(), l).unwrap());
        let six =
            (any::<[u8; 16]>(), 0u8..=128).prop_map(|(a, l)| IpNet::new(a.into(), l).unwrap());
        prop_oneof![four, six].prop_map(|prefix| prefix.trunc())
    }

    proptest! {
        #[test]
        fn node_bindings_come_back_as_they_went(
            name in "[a-z0-9]([a-z0-9._-]{0,60}[a-z0-9])?",
            prefixes in vec(prefix(), 0..MAX_PREFIXES),
            assignment: u64,
        ) {
            let binding = NodeBinding { name: name.parse().unwrap(), prefixes, assignment };
            prop_assert_eq!(NodeBinding::decode(&binding.encode()), Some(binding));
        }

        #[test]
        fn proof_bindings_come_back_as_they_went(
            labels in btree_map("[a-zA-Z0-9._/:-]{1,30}", "[a-zA-Z0-9._/:-]{0,30}", 0..60),
        ) {
            let binding = ProofBinding { node: "n1".parse().unwrap(), labels };
            prop_assert_eq!(ProofBinding::decode(&binding.encode()), Some(binding));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
            let _ = NodeBinding::decode(&bytes);
            let _ = ProofBinding::decode(&bytes);
        }

        #[test]
        fn damaged_bindings_never_panic(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let binding = NodeBinding {
                name: "n1".parse().unwrap(),
                prefixes: vec!["10.1.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
                assignment: 7,
            };
            let mut der = binding.encode();
            let at = at.index(der.len());
            der[at] = byte;
            let _ = NodeBinding::decode(&der);
            der.truncate(cut.index(der.len()));
            prop_assert_eq!(NodeBinding::decode(&der), None);
        }
    }

    #[test]
    fn prefixes_with_host_bits_and_double_labels_are_refused() {
        let dirty = NodeBinding {
            name: "n1".parse().unwrap(),
            prefixes: vec!["10.1.0.0/24".parse().unwrap()],
            assignment: 1,
        };
        let mut der = dirty.encode();
        let at = der
            .windows(4)
            .position(|window| window == [10, 1, 0, 0])
            .unwrap();
        der[at + 3] = 1;
        assert_eq!(NodeBinding::decode(&der), None);

        let twice = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_u64(1);
                writer.next().write_utf8_string("n1");
                writer.next().write_sequence_of(|writer| {
                    for value in ["a", "b"] {
                        writer.next().write_sequence(|writer| {
                            writer.next().write_utf8_string("k");
                            writer.next().write_utf8_string(value);
                        });
                    }
                });
            });
        });
        assert_eq!(ProofBinding::decode(&twice), None);
    }

    #[test]
    fn oids_are_encoded_as_x690_says() {
        assert_eq!(
            oid_content(&[1, 2, 840, 113_549]),
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d]
        );
        let yasna = yasna::construct_der(|writer| {
            writer.write_oid(&yasna::models::ObjectIdentifier::from_slice(PROOF_USAGE));
        });
        assert_eq!(oid_content(PROOF_USAGE), yasna[2..]);
    }
}
