#!/usr/bin/env bash
# Measures what tunnels of a kernel itself cost, and gates in instructions: `scripts/kernels/bench.sh`, after
# `scripts/bench.sh` has built what measures. In a guest, since the kernel may have neither WireGuard nor ESP here, and by a
# clock that counts instructions (see boot.sh): an emulator's time says nothing, and this machine may have other work.
#
#   KERNEL=6.1 …       6.12 unless told
#   PARTS=ipsec …      only parts whose name matches this pattern: gates, wireguard, ipsec
#
# The figures go to bench/results.json in the target directory, in place of those of the same name.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh

kernel=${KERNEL:-6.12}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
work=$target/kernels/bench
mkdir -p "$work"

scripts/setup.sh kernels
folder=$(scripts/kernels/fetch.sh "$kernel")
measure="$target/release/handfast-figures"
inside="env CARGO_TARGET_DIR=/run/figures HANDFAST_CLOCK=instructions"
# What it may take is this machine's time, of which a guest's second is ten or more.
while read -r name words; do
    [[ ! $name =~ ${PARTS:-.} ]] || echo "$name 36000 $inside $words"
done >"$work/list" <<END
gates $measure gate/instructions
wireguard ENCRYPTION=wireguard $measure tunnel
ipsec ENCRYPTION=ipsec $measure tunnel
END
scripts/kernels/initramfs.sh "$work/root.cpio" "$work/list" "$measure" "$target/release/handfast"
echo "measuring in kernel $kernel …" >&2
CLOCK=instructions scripts/kernels/boot.sh "$folder" "$work/root.cpio" "$work/$kernel.log" "${SECONDS_AT_MOST:-5400}"
scripts/kernels/figures.py "$work/$kernel.log" "$work/list" "$target/bench/results.json"
