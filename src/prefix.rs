//! Ranges of addresses that operators give.

use ipnet::IpNet;

/// Reads `ADDRESS/LENGTH`.
pub fn read(text: &str) -> Result<IpNet, String> {
    text.parse()
        .map_err(|_| "write ADDRESS/LENGTH, such as 10.1.0.0/24 or fd00:1::/64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_a_length_that_its_address_can_have() {
        assert_eq!(read("10.1.0.0/24").unwrap().to_string(), "10.1.0.0/24");
        for bad in ["10.0.0.0/33", "10.0.0.0", "fd00::/129", "web/8", ""] {
            assert!(read(bad).unwrap_err().contains("ADDRESS/LENGTH"), "{bad}");
        }
    }
}
