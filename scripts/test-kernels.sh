#!/usr/bin/env bash
# Runs the tests inside real kernels: Debian's cloud kernels, in an emulator, with
# their own WireGuard, ESP and traffic control. Needs no root and no KVM.
#
#   scripts/test-kernels.sh             6.1, 6.12 and 7.2; all suites of gates and tunnels
#   KERNELS="6.1 7.2" …                 only these
#   SHORT=1 …                           packet tables, verifier and WireGuard: some minutes
#   SUITES=ipsec …                      only suites whose name matches this pattern
#   DEMO=1 …                            `handfast demo` too, over the kernel's WireGuard and over its IPsec;
#                                       a release build, and some minutes more for each
#
# What a guest said stays in target/kernels/KERNEL.log.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

kernels=${KERNELS:-6.1 6.12 7.2}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
work=$target/kernels
mkdir -p "$work"

scripts/setup.sh kernels

# The test programs, and how long each may take in a guest, in seconds.
packages=(-p handfast-bpf -p handfast-encrypt)
suites=${SUITES:-.}
if [ -n "${SHORT:-}" ] && [ -z "${SUITES:-}" ]; then
    suites='loading|endpoint|fragments|/tunnel|host'
fi
cargo test --locked --no-run --quiet --message-format=json "${packages[@]}" >"$work/build.json"
python3 - "$work/build.json" "$work/list" "$suites" <<'PY'
import json, os, re, sys
# Only what asks the kernel: unit tests have nothing new to say in a guest.
seconds = {"bpf-auth-map": 900, "encrypt": 900}
wanted = []
for line in open(sys.argv[1]):
    built = json.loads(line)
    if built.get("executable") and "test" in built["target"]["kind"]:
        part = os.path.relpath(built["target"]["src_path"]).split("/")[0]
        wanted.append(("%s/%s" % (part, built["target"]["name"]), seconds[part], built["executable"]))
with open(sys.argv[2], "w") as out:
    for name, limit, program in sorted(wanted):
        if re.search(sys.argv[3], name):
            # Packet tables wait for the kernel more than they work; what measures time runs alone.
            threads = 4 if name in ("bpf-auth-map/endpoint", "bpf-auth-map/tunnel") else 1
            out.write("%s %d %s --show-output --test-threads=%d\n" % (name, limit, program, threads))
PY
[ -s "$work/list" ] || {
    echo "test-kernels.sh: no suite matches '$suites'" >&2
    exit 2
}

mapfile -t files < <(awk '{ print $3 }' "$work/list")
if [ -n "${DEMO:-}" ]; then
    cargo build --locked --quiet --release --bin handfast
    files+=("$target/release/handfast")
    # Emulated: everything may take ten times as long.
    for kind in wireguard ipsec; do
        echo "demo/$kind 1800 env HANDFAST_SLOWNESS=10 $target/release/handfast demo --encryption $kind --json" >>"$work/list"
    done
fi
scripts/kernels/initramfs.sh "$work/root.cpio" "$work/list" "${files[@]}"

# Runs a guest; its console goes to a file. `-cpu`: without cmpxchg16b, which QEMU 7
# emulates with wrong flags (6.12's allocator then follows a wild pointer), and without
# five-level page tables, with which it sometimes ends before init.
boot() {
    local folder=$1 log=$2 limit
    limit=$(awk '{ sum += $2 } END { print sum + 120 }' "$work/list")
    cat "$folder/modules.cpio" "$work/root.cpio" >"$work/initrd"
    timeout "$limit" qemu-system-x86_64 -M microvm,acpi=off,rtc=on -accel tcg -cpu max,la57=off,cx16=off \
        -m 2048 -smp 2 -kernel "$folder/vmlinuz" -initrd "$work/initrd" \
        -append "console=ttyS0 quiet panic=-1 reboot=t" -nographic -no-reboot </dev/null >"$log" 2>&1 || true
}

outcome=0
for kernel in $kernels; do
    folder=$(scripts/kernels/fetch.sh "$kernel")
    log=$work/$kernel.log
    # The emulator loses some boots before init; only such a one is repeated.
    for _ in 1 2 3 4 5; do
        boot "$folder" "$log"
        ! grep -aq '^@@ init' "$log" || break
        echo "kernel $kernel ended before its init; once more"
    done
    scripts/kernels/summary.py "$kernel" "$log" "$work/list" || outcome=1
done
rm -f "$work/initrd"
exit "$outcome"
