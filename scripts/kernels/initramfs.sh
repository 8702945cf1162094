#!/usr/bin/env bash
# Makes the guest's file system: tools of this machine with the libraries they
# need, the programs under test at the very paths they have here, and a list of
# what is to run.
#
#   scripts/kernels/initramfs.sh OUT LIST PROGRAM…
#
# OUT is an archive for an initramfs, LIST becomes /tests/list (see `init`).
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh

out=${1:?archive to write}
list=${2:?list of what is to run}
shift 2
here=$PWD/scripts/kernels
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work"/{dev,proc,sys,run,tmp,root,tests,etc,usr/{bin,sbin,lib,lib64}}
for folder in bin sbin lib lib64; do
    ln -s "usr/$folder" "$work/$folder"
done
mkdir "$work/var"
ln -s ../run "$work/var/run"
chmod 1777 "$work/tmp"

# A file at its own path; through links to folders as the guest has them.
put() {
    mkdir -p "$work/$(dirname "${2:-$1}")"
    cp -L "$1" "$work/${2:-$1}"
}

# A program without its symbols, and the libraries it is linked to.
program() {
    put "$1"
    strip "$work/$1" 2>/dev/null || true
    local library
    # A static program has none.
    for library in $(ldd "$1" 2>/dev/null | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) { print $i; break } }'); do
        [ -e "$work/$library" ] || put "$library"
    done
}

for tool in busybox ip tc bridge nft ping curl iperf3 setpriv wireguard-go wg; do
    path=$(command -v "$tool") || {
        echo "initramfs.sh: no $tool here: run scripts/setup.sh kernels" >&2
        exit 1
    }
    program "$(readlink -f "$path")"
    [ -e "$work/usr/bin/$tool" ] || [ -e "$work/usr/sbin/$tool" ] || ln -s "$(readlink -f "$path")" "$work/usr/bin/$tool"
done
# Everything else that busybox has: the tools above come first in the path.
for applet in $(busybox --list); do
    [ -e "$work/usr/bin/$applet" ] || [ -e "$work/usr/sbin/$applet" ] || ln -s /usr/bin/busybox "$work/usr/bin/$applet"
done

# Scripts are given to a shell that starts the tools above, not applets of its own.
program "$(readlink -f "$(command -v dash)")"
ln -sf dash "$work/usr/bin/sh"

# A web server and its library, with what Python has compiled of it.
python=$(python3 -c 'import os, sys; print(os.path.realpath(sys.executable))')
program "$python"
ln -sf "$python" "$work/usr/bin/python3"
library=$("$python" -c 'import os; print(os.path.dirname(os.__file__))')
mkdir -p "$work/$library"
(cd "$library" && find . \( -name test -o -name idlelib -o -name tkinter -o -name ensurepip -o -name site-packages \
    -o -name dist-packages -o -name lib2to3 -o -name pydoc_data -o -name 'config-*' \) -prune \
    -o -type f ! -name '_tkinter*' -print | cpio --quiet -pdm "$work/$library")
for module in "$work/$library"/lib-dynload/*.so; do
    for needed in $(ldd "$module" | awk '$3 ~ /^\// { print $3 }'); do
        [ -e "$work/$needed" ] || put "$needed"
    done
done

for file in /etc/protocols /etc/services; do
    [ ! -e "$file" ] || put "$file"
done
printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$work/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$work/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$work/etc/hosts"

for path; do
    program "$path"
done
cp "$list" "$work/tests/list"
cp "$here/init" "$work/init"
chmod 755 "$work/init"
(cd "$work" && find . | cpio --quiet -o -H newc -R 0:0) >"$out"
