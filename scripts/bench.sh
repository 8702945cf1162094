#!/usr/bin/env bash
# Measures the figures of SPECIFICATION.md that something measures: all, or those of one group. Those of tunnels, and of gates
# in instructions, come from a guest whose kernel has tunnels of its own (`scripts/kernels/bench.sh`).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
scripts/setup.sh run

# The same versions as the program's own.
cp Cargo.lock benches/figures/Cargo.lock
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
# Nodes, gates and tunnels are measured on the program itself, which has to lie beside what measures.
cargo build --release --quiet --locked --bin handfast
outcome=0
cargo run --release --quiet --manifest-path benches/figures/Cargo.toml -- "$@" || outcome=$?
case ${1:-} in
    '' | tunnel) scripts/kernels/bench.sh || outcome=$? ;;
    gate) PARTS=gates scripts/kernels/bench.sh || outcome=$? ;;
esac
exit "$outcome"
