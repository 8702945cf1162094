//! A device name that the kernel takes, and that is safe in a path and in an nftables script.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// Bytes of a name: IFNAMSIZ less the end mark.
const LONGEST: usize = 15;

/// The name of a tunnel device: letters, digits, `-`, `_` and `.`, at most 15.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceName(String);

impl DeviceName {
    /// `hf-wg0`, the first device's default.
    pub fn first() -> Self {
        Self("hf-wg0".to_owned())
    }

    /// The second device's name: the one that takes over when static keys change. `hf-wg1` beside `hf-wg0`.
    #[must_use]
    pub fn beside(&self) -> Self {
        let mut name = self.0.clone();
        let last = name.pop().unwrap_or('0');
        match last {
            '0' => name.push('1'),
            last if name.len() + 2 <= LONGEST => name.extend([last, '1']),
            '1' => name.push('2'),
            _ => name.push('1'),
        }
        Self(name)
    }

    /// `hf-xfrm0`, the default of IPsec's device.
    pub fn ipsec() -> Self {
        Self("hf-xfrm0".to_owned())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let fits = (1..=LONGEST).contains(&text.len()) && text.bytes().all(known);
        // The kernel refuses these two; a leading dash would be read as an option.
        if fits && text != "." && text != ".." && !text.starts_with('-') {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::DeviceName(text.to_owned()))
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_device_is_named_after_the_first() {
        for (first, second) in [
            ("hf-wg0", "hf-wg1"),
            ("mesh", "mesh1"),
            ("abcdefghijklmn0", "abcdefghijklmn1"),
            ("abcdefghijklmn1", "abcdefghijklmn2"),
            ("abcdefghijklmno", "abcdefghijklmn1"),
        ] {
            let named: DeviceName = first.parse().unwrap();
            let beside = named.beside();
            assert_eq!(beside.as_str(), second);
            assert_eq!(beside.to_string().parse::<DeviceName>().unwrap(), beside);
        }
    }

    #[test]
    fn only_plain_short_names_are_taken() {
        assert_eq!("hf-wg1".parse::<DeviceName>().unwrap().as_str(), "hf-wg1");
        for odd in [
            "",
            "..",
            ".",
            "-f",
            "a/b",
            "a b",
            "a\"b",
            "a\0",
            "sixteen-bytes-ab",
            "wg\u{e4}",
        ] {
            assert!(odd.parse::<DeviceName>().is_err(), "{odd:?}");
        }
    }
}
