#!/usr/bin/env bash
# All that must hold before a change goes in. Needs root, or sudo, for the tests
# in network namespaces; without it they say "skipped" and why.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

step() { printf '\n== %s (%dm%02ds)\n' "$*" $((SECONDS / 60)) $((SECONDS % 60)); }

scripts/setup.sh test
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
before=$(mktemp)
skips=$(mktemp)
trap 'rm -f "$before" "$skips"' EXIT
scripts/leftovers.sh list >"$before"

step "format, lints, dependencies"
scripts/lint.sh

step "the committed eBPF object is what its source says"
bpf-auth-map/ebpf/build.sh --check

step "tests"
tests_as_root
# Shows what passing tests print only where they say that they were skipped.
summary() {
    awk -v skips="$skips" '
        /^successes:$/ { hush = 1 }
        /^failures:$/ || /^test result:/ { hush = 0 }
        # A helper that others start is no test that was left out.
        tolower($0) ~ /skipped: / && !/only the other tests run it/ { print >> skips; if (hush) print }
        !hush'
}
cargo build --locked --workspace --bins
cargo test --locked --workspace --no-fail-fast -- --show-output 2>&1 | summary

step "bugs that are planted are found"
cargo test --locked --quiet -p handfast-agent --features planted-bugs --test core_simulation planted

step "Linux 6.1, in an emulator"
OPTIONAL=1 SHORT=1 KERNELS=6.1 scripts/test-kernels.sh | tee "$target/kernels.txt"
grep '^skipped: ' "$target/kernels.txt" >>"$skips" || true

step "the demo"
scripts/demo.sh --json >"$target/demo.json" || {
    cat "$target/demo.json"
    exit 1
}
python3 - "$target/demo.json" <<'PY'
import json, sys
report = json.load(open(sys.argv[1]))
for step in report["steps"]:
    print("%-4s %6d ms  %s" % ("ok" if step["ok"] else "FAIL", step["ms"], step["name"]))
sys.exit(0 if report["ok"] and report["steps"] else 1)
PY

step "nothing is left behind"
scripts/leftovers.sh compare "$before"

if [ -s "$skips" ]; then
    printf '\nnot run on this machine:\n'
    sort -u "$skips"
fi
step "all passed"
