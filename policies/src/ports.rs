//! Port ranges, and the prefixes that a longest-prefix map wants instead.

use std::fmt;

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// All ports, and protocols that have none.
    pub const ANY: Self = Self {
        first: 0,
        last: u16::MAX,
    };

    /// The range from `first` to `last`, both included; `None` if it is turned round.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The lowest port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether the port lies in the range.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Whether the two have a port in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ANY => f.write_str("any"),
            Self { first, last } if first == last => write!(f, "{first}"),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

/// The ports whose first `length` bits (0 to 16, most significant first) are those of `port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortPrefix {
    /// The lowest port of the prefix; host byte order.
    pub port: u16,
    /// How many leading bits count.
    pub length: u8,
}

/// The fewest prefixes that together cover exactly these ports, ascending.
#[must_use]
pub fn ports_to_prefixes(ports: Ports) -> Vec<PortPrefix> {
    let mut prefixes = Vec::new();
    let end = u32::from(ports.last) + 1;
    let mut at = u32::from(ports.first);
    while at < end {
        let aligned = at.trailing_zeros().min(16);
        let fits = (end - at).ilog2();
        let bits = aligned.min(fits);
        prefixes.push(PortPrefix {
            port: at as u16,
            length: (16 - bits) as u8,
        });
        at += 1 << bits;
    }
    prefixes
}
