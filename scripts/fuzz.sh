#!/usr/bin/env bash
# Follows coverage through every parser of foreign bytes, SECONDS each (60 unless told).
# A finding stops it and is kept under fuzz/artifacts/.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
seconds=${1:-60}
scripts/setup.sh fuzz

# The same versions as the program's own.
cp Cargo.lock fuzz/Cargo.lock
cargo +nightly run --quiet --manifest-path fuzz/Cargo.toml --bin seeds
for target in fuzz/fuzz_targets/*.rs; do
    target=$(basename "$target" .rs)
    echo "== $target"
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -max_len=70000 -rss_limit_mb=2048 -verbosity=0 -print_final_stats=1
done
