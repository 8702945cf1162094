#!/usr/bin/env bash
# What `make test` does with fixed seeds, with new ones until MINUTES are over (60 unless told): histories of the
# agent's core, foreign bytes, kill -9 of every process under a flood, and of agents under proven flows, and a
# hundred events while the wire is watched. The seed is printed, so that a failure can be repeated.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
end=$((SECONDS + ${1:-60} * 60))
scripts/setup.sh run
tests_as_root

while [ "$SECONDS" -lt "$end" ]; do
    seed=$((RANDOM << 15 | RANDOM))
    echo "== HANDFAST_SEED=$seed HANDFAST_FUZZ_SEED=$seed"
    HANDFAST_SEED=$seed HANDFAST_HISTORIES=${HISTORIES:-100000} HANDFAST_PROGRESS=10000 \
        cargo test --locked --quiet --profile soak -p handfast-agent --test core_simulation many_histories -- --nocapture
    HANDFAST_FUZZ_SEED=$seed HANDFAST_FUZZ_ROUNDS=200000 \
        cargo test --locked --quiet -p handfast-agent --test foreign_bytes
    HANDFAST_SEED=$seed HANDFAST_KILLS=200 cargo test --locked --quiet -p handfast --test e2e -- kills restarts
    HANDFAST_SEED=$seed HANDFAST_LEAK_EVENTS=100 cargo test --locked --quiet -p handfast --test e2e -- --ignored \
        leaks::nothing_between_managed_addresses_is_in_clear_however
done
