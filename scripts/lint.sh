#!/usr/bin/env bash
# Format, clippy, and the rules for dependencies (deny.toml).
#
# Advisories are not among them: their database comes over the network from a
# place that need not be reachable here. `cargo deny check advisories` does it.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
scripts/setup.sh test

cargo fmt --all --check
cargo fmt --manifest-path bpf-auth-map/ebpf/Cargo.toml --check
cargo fmt --manifest-path fuzz/Cargo.toml --check
cargo fmt --manifest-path benches/figures/Cargo.toml --check
cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
cargo deny --locked --log-level error check licenses bans sources

# The agent's core is driven by a simulator: no runtime, no clock of its own.
if grep -rnE 'tokio::|SystemTime|Instant::now|std::net::(Tcp|Udp)|std::fs' auth-agent/src/core; then
    echo "lint: auth-agent/src/core takes time as a value and does no I/O" >&2
    exit 1
fi
