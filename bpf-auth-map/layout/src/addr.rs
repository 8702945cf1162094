//! One shape for both families, so that one map and one lookup serve them.

/// An address in 16 bytes as on the wire, IPv4 as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
///
/// Held as four words in memory order, so that the kernel copies and compares words, not bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Addr {
    words: [u32; 4],
}

impl Addr {
    /// No address: `::`.
    pub const NONE: Self = Self { words: [0; 4] };

    /// From the bytes of an IPv4 header.
    #[inline(always)]
    pub const fn v4(bytes: [u8; 4]) -> Self {
        Self {
            words: [
                0,
                0,
                u32::from_ne_bytes([0, 0, 0xff, 0xff]),
                u32::from_ne_bytes(bytes),
            ],
        }
    }

    /// From a word of an IPv4 header, in memory order.
    #[inline(always)]
    pub const fn v4_word(word: u32) -> Self {
        Self {
            words: [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), word],
        }
    }

    /// From the words of an IPv6 header, in memory order.
    #[inline(always)]
    pub const fn v6_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The words, in memory order.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.words
    }

    /// From the bytes of an IPv6 header.
    #[inline(always)]
    pub const fn v6(b: [u8; 16]) -> Self {
        let [
            b0,
            b1,
            b2,
            b3,
            b4,
            b5,
            b6,
            b7,
            b8,
            b9,
            b10,
            b11,
            b12,
            b13,
            b14,
            b15,
        ] = b;
        Self {
            words: [
                u32::from_ne_bytes([b0, b1, b2, b3]),
                u32::from_ne_bytes([b4, b5, b6, b7]),
                u32::from_ne_bytes([b8, b9, b10, b11]),
                u32::from_ne_bytes([b12, b13, b14, b15]),
            ],
        }
    }

    /// The 16 bytes as on the wire.
    pub const fn bytes(self) -> [u8; 16] {
        let [a, b, c, d] = self.words;
        let [a0, a1, a2, a3] = a.to_ne_bytes();
        let [b0, b1, b2, b3] = b.to_ne_bytes();
        let [c0, c1, c2, c3] = c.to_ne_bytes();
        let [d0, d1, d2, d3] = d.to_ne_bytes();
        [
            a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3,
        ]
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let [a, b, c, _] = self.words;
        a == 0 && b == 0 && c == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// Whether this is `::` or `0.0.0.0`: the source of one who has no address yet.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        let [a, b, c, d] = self.words;
        a == 0 && b == 0 && d == 0 && (c == 0 || c == u32::from_ne_bytes([0, 0, 0xff, 0xff]))
    }

    /// Whether this is an IPv6 link-local address (`fe80::/10`).
    #[inline(always)]
    pub const fn is_v6_link_local(self) -> bool {
        let [a, ..] = self.words;
        u32::from_be(a) & 0xffc0_0000 == 0xfe80_0000
    }

    /// Whether this is a multicast address (`ff00::/8`, `224.0.0.0/4`) or IPv4's broadcast.
    #[inline(always)]
    pub const fn is_multicast(self) -> bool {
        let [a, .., d] = self.words;
        if self.is_v4() {
            let v4 = u32::from_be(d);
            v4 & 0xf000_0000 == 0xe000_0000 || v4 == u32::MAX
        } else {
            u32::from_be(a) & 0xff00_0000 == 0xff00_0000
        }
    }
}

impl PartialEq for Addr {
    /// Word by word: a slice comparison would become a call that the kernel does not have.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.words, other.words);
        a == e && b == f && c == g && d == h
    }
}

impl Eq for Addr {}

#[cfg(test)]
mod tests {
    use super::Addr;

    #[test]
    fn bytes_come_back_as_they_were() {
        let v6 = [0x20, 1, 0xd, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        assert_eq!(Addr::v6(v6).bytes(), v6);
        assert_eq!(
            Addr::v4([10, 1, 2, 3]).bytes(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3]
        );
    }

    #[test]
    fn the_two_families_are_told_apart() {
        assert!(Addr::v4([224, 0, 0, 1]).is_multicast());
        assert!(Addr::v4([255; 4]).is_multicast());
        assert!(!Addr::v4([10, 0, 0, 1]).is_multicast());
        assert!(Addr::v4([0; 4]).is_unspecified() && Addr::NONE.is_unspecified());
        let mut link = [0; 16];
        link[..2].copy_from_slice(&[0xfe, 0xbf]);
        assert!(Addr::v6(link).is_v6_link_local());
        link[0] = 0xff;
        assert!(Addr::v6(link).is_multicast() && !Addr::v6(link).is_v6_link_local());
    }
}
