#!/usr/bin/env bash
# Runs the demo of the build that is there; arguments go to `handfast demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
exec $root "${CARGO_TARGET_DIR:-target}/debug/handfast" demo "$@"
