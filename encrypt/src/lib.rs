//! Tunnels between nodes: WireGuard now, IPsec behind the same trait.
