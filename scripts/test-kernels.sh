#!/usr/bin/env bash
# Runs the tests inside real kernels: Debian's cloud kernels, in an emulator, with
# their own WireGuard, ESP and traffic control. Needs no root and no KVM.
#
#   scripts/test-kernels.sh             6.1, 6.12 and 7.2; all suites of gates and tunnels, and two nodes end to end
#   KERNELS="6.1 7.2" …                 only these
#   SHORT=1 …                           packet tables, verifier, two nodes over IPsec: some minutes
#   SUITES=ipsec …                      only suites whose name matches this pattern
#   OPTIONAL=1 …                        where no emulator or kernel can be had, that is said, and is no failure; for
#                                       use after the workspace's tests, whose programs it takes
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

# Without what it takes there is nothing to test, and nothing has failed.
give_up() {
    [ -n "${OPTIONAL:-}" ] || {
        echo "test-kernels.sh: $*" >&2
        exit 1
    }
    echo "skipped: tests in kernels $kernels: $*"
    exit
}

[ "$(uname -m)" = x86_64 ] || give_up "they are kernels for x86-64"
scripts/setup.sh kernels || give_up "the emulator cannot be installed"
folders=()
for kernel in $kernels; do
    folders+=("$(scripts/kernels/fetch.sh "$kernel")") || give_up "kernel $kernel cannot be fetched"
done

# The test programs, and how long each may take in a guest, in seconds.
packages=(-p handfast-bpf -p handfast-encrypt)
suites=${SUITES:-.}
if [ -n "${SHORT:-}" ] && [ -z "${SUITES:-}" ]; then
    suites='loading|endpoint|fragments|flows|map/host|e2e/ipsec-load'
fi
build() { cargo test --locked --no-run --quiet --message-format=json "$@"; }
if [ -n "${OPTIONAL:-}" ]; then
    # The very programs that have run already: another choice of packages would be other features, and built anew.
    build --workspace >"$work/build.json"
else
    build "${packages[@]}" >"$work/build.json"
    build -p handfast --test e2e >>"$work/build.json"
fi
python3 - "$work/build.json" "$work/list" "$suites" >"$work/files" <<'PY'
import json, os, re, sys
# Only what asks the kernel: unit tests have nothing new to say in a guest. Of the end-to-end tests what differs with
# the kernel: its own tunnels. Emulated: everything may take ten times as long.
two_nodes = "env HANDFAST_SLOWNESS=10 %s --show-output --test-threads=1 "
filters = {
    "e2e/ipsec-load": "--exact rotation::no_packet_is_lost_to_new_keys_of_ipsec_or_a_restart",
    "e2e/ipsec-leaks": "--exact leaks::nothing_between_managed_addresses_is_in_clear_over_ipsec_whatever_happens",
    "e2e/wireguard-load": "--exact rotation::no_packet_is_lost_to_new_keys_or_a_restart",
    "e2e/wireguard-leaks": "--exact leaks::nothing_between_managed_addresses_is_in_clear_whatever_happens",
}
suites, files = {}, []
for line in open(sys.argv[1]):
    built = json.loads(line)
    if not built.get("executable"):
        continue
    name, program = built["target"]["name"], built["executable"]
    part = os.path.relpath(built["target"]["src_path"]).split("/")[0]
    if name == "handfast" and "bin" in built["target"]["kind"] and not built["profile"]["test"]:
        files.append(program)
    elif "test" not in built["target"]["kind"]:
        continue
    elif part in ("bpf-auth-map", "encrypt"):
        name = "%s/%s" % (part, name)
        # Packet tables wait for the kernel more than they work; what measures time runs alone.
        threads = 4 if name in ("bpf-auth-map/endpoint", "bpf-auth-map/tunnel") else 1
        suites[name] = (program, "%s --show-output --test-threads=%d" % (program, threads))
    elif (part, name) == ("tests", "e2e"):
        for suite, which in filters.items():
            suites[suite] = (program, two_nodes % program + which)
with open(sys.argv[2], "w") as out:
    for name, (program, command) in sorted(suites.items()):
        if re.search(sys.argv[3], name):
            out.write("%s %d %s\n" % (name, 1800 if name in filters else 900, command))
            files.append(program)
print("\n".join(sorted(set(files))))
PY
[ -s "$work/list" ] || {
    echo "test-kernels.sh: no suite matches '$suites'" >&2
    exit 2
}

mapfile -t files <"$work/files"
# The end-to-end tests take turns by it.
files+=("$PWD/Cargo.toml")
if [ -n "${DEMO:-}" ]; then
    cargo build --locked --quiet --release --bin handfast
    files+=("$target/release/handfast")
    # Emulated: everything may take ten times as long.
    for kind in wireguard ipsec; do
        echo "demo/$kind 1800 env HANDFAST_SLOWNESS=10 $target/release/handfast demo --encryption $kind --json" >>"$work/list"
    done
fi
scripts/kernels/initramfs.sh "$work/root.cpio" "$work/list" "${files[@]}"

limit=$(awk '{ sum += $2 } END { print sum + 120 }' "$work/list")
outcome=0
for kernel in $kernels; do
    folder=${folders[0]}
    folders=("${folders[@]:1}")
    log=$work/$kernel.log
    scripts/kernels/boot.sh "$folder" "$work/root.cpio" "$log" "$limit"
    scripts/kernels/summary.py "$kernel" "$log" "$work/list" || outcome=1
done
exit "$outcome"
