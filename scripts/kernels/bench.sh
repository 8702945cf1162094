#!/usr/bin/env bash
# Measures what tunnels of a kernel itself cost, and gates in instructions: `scripts/kernels/bench.sh`, after
# `scripts/bench.sh` has built what measures. In a guest, since the kernel may have neither WireGuard nor ESP here. Throughput is
# measured by the emulator's own time, in which ciphers hide everything else, and beside it by a clock that counts instructions
# (see boot.sh), which no other work of this machine disturbs; so are lost packets and the gates.
#
#   KERNEL=6.1 …       6.12 unless told
#   PARTS=ipsec …      only parts whose name matches this pattern: gates, wireguard-work, ipsec-work, wireguard, ipsec
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

# One guest by each clock: the words of its parts come from standard input.
guest() {
    local clock=$1
    while read -r name words; do
        [[ ! $name =~ ${PARTS:-.} ]] ||
            echo "$name 36000 env CARGO_TARGET_DIR=/run/figures HANDFAST_CLOCK=$clock $words"
    done >"$work/list"
    [ -s "$work/list" ] || return 0
    scripts/kernels/initramfs.sh "$work/root.cpio" "$work/list" "$measure" "$target/release/handfast" || return
    echo "measuring in kernel $kernel by a clock that is ${clock/instructions/counting instructions} …" >&2
    CLOCK=$clock scripts/kernels/boot.sh "$folder" "$work/root.cpio" "$work/$kernel-$clock.log" 5400 || return
    scripts/kernels/figures.py "$work/$kernel-$clock.log" "$work/list" "$target/bench/results.json"
}

outcome=0
guest instructions <<END || outcome=$?
gates $measure gate/instructions
wireguard-work ENCRYPTION=wireguard $measure tunnel
ipsec-work ENCRYPTION=ipsec $measure tunnel
END
guest emulated <<END || outcome=$?
wireguard HANDFAST_SLOWNESS=10 ENCRYPTION=wireguard PART=ratio $measure tunnel
ipsec HANDFAST_SLOWNESS=10 ENCRYPTION=ipsec PART=ratio $measure tunnel
END
exit "$outcome"
