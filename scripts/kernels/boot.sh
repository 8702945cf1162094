#!/usr/bin/env bash
# Boots a kernel in an emulator, without root or KVM, and waits until it has ended.
#
#   scripts/kernels/boot.sh FOLDER ROOT LOG SECONDS
#
# FOLDER is what `fetch.sh` printed, ROOT what `initramfs.sh` made; the guest's console goes to LOG, and after
# SECONDS it is ended. CLOCK=instructions gives it one processor, and a clock by which each instruction takes a
# nanosecond and waiting takes none: what a program is seen to take there is what it executes, whatever
# else this machine does meanwhile.
set -euo pipefail

folder=${1:?folder of a kernel}
root=${2:?archive with its files}
log=${3:?file for what it says}
limit=${4:?seconds}

initrd=$(mktemp "$log.XXXXXX")
trap 'rm -f "$initrd"' EXIT
cat "$folder/modules.cpio" "$root" >"$initrd"

clock=(-smp 2)
[ "${CLOCK:-}" != instructions ] || clock=(-smp 1 -icount "shift=0,sleep=off" -rtc "clock=vm")

# `-cpu`: without cmpxchg16b, which QEMU 7 emulates with wrong flags (6.12's allocator then follows a wild
# pointer), and without five-level page tables, with which it sometimes ends before init. The emulator loses some
# boots before init all the same; only such a one is repeated.
for _ in 1 2 3 4 5; do
    timeout "$limit" qemu-system-x86_64 -M microvm,acpi=off,rtc=on -accel tcg -cpu max,la57=off,cx16=off \
        -m 2048 "${clock[@]}" -kernel "$folder/vmlinuz" -initrd "$initrd" \
        -append "console=ttyS0 quiet panic=-1 reboot=t" -nographic -no-reboot </dev/null >"$log" 2>&1 || true
    ! grep -aq '^@@ init' "$log" || exit 0
    echo "kernel ${folder##*/} ended before its init; once more"
done
