//! Kernel switches that forwarding workloads' packets needs, in this network namespace.

use std::io;
use std::path::Path;

/// A switch, and the value that it must have.
const SWITCHES: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/ip_forward", "1"),
    ("/proc/sys/net/ipv6/conf/all/forwarding", "1"),
];

/// Turns forwarding on where it is off, and tells which switches were turned, so that `detach` can turn them back.
pub(super) fn enable() -> io::Result<Vec<String>> {
    let mut turned = Vec::new();
    for (path, wanted) in SWITCHES {
        // A kernel without IPv6 has no such file, and needs none.
        if !Path::new(path).exists() {
            continue;
        }
        if std::fs::read_to_string(path)?.trim() != wanted {
            std::fs::write(path, wanted)?;
            turned.push(path.to_owned());
        }
    }
    Ok(turned)
}

/// Turns back what `enable` turned.
pub(super) fn restore(turned: &[String]) -> io::Result<()> {
    for path in turned {
        if SWITCHES.iter().any(|(known, _)| known == path) {
            std::fs::write(path, "0")?;
        }
    }
    Ok(())
}
