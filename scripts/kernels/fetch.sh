#!/usr/bin/env bash
# Fetches one of Debian's cloud kernels and unpacks it into the cache, installing
# nothing: apt works in folders of its own there, and checks Debian's signatures.
#
#   scripts/kernels/fetch.sh 6.1      prints the folder, which then has:
#       vmlinuz       the image
#       modules.cpio  the modules that tests can need, as an archive for an initramfs
#       release       what `uname -r` says in it
#
# A kernel that is in the cache already is not looked for again.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh

wanted=${1:?which kernel: 6.1, 6.12 or 7.2}
cache=${tools%/tools}/kernels
folder=$cache/$wanted
mirror=${HANDFAST_DEBIAN_MIRROR:-http://deb.debian.org/debian}
keys=/usr/share/keyrings/debian-archive-keyring.gpg

fail() {
    echo "fetch.sh: $*" >&2
    exit 1
}

if [ -s "$folder/release" ]; then
    echo "$folder"
    exit
fi

case $wanted in
    6.1) suite=bookworm ;;
    6.12) suite=trixie ;;
    *) suite=trixie-backports ;;
esac

mkdir -p "$cache"
work=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,archives}/partial
echo "deb [signed-by=$keys] $mirror $suite main" >"$work/sources.list"
cat >"$work/apt.conf" <<END
Dir::State "$work";
Dir::State::lists "$work/lists";
Dir::State::status "/dev/null";
Dir::Cache "$work";
Dir::Cache::archives "$work/archives";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "-";
Acquire::Languages "none";
APT::Sandbox::User "";
END
export APT_CONFIG=$work/apt.conf
# Words go to a file, and to the terminal only when they matter.
apt-get update >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "no list of packages from $mirror $suite"; }

# The newest of that series, signed where Debian signs one. From 7.x on a kernel is
# three packages.
newest() {
    apt-cache pkgnames "linux-$1-$wanted." | grep -E "^linux-$1-[0-9][^~]*-cloud-amd64\$" | sort -V | tail -1 || true
}
packages=()
for part in binary modules base; do
    packages+=("$(newest "$part")")
done
[ -n "${packages[0]}" ] || packages=("$(newest image)")
[ -n "${packages[0]}" ] || fail "$suite has no cloud kernel $wanted"
(cd "$work/archives" && apt-get download "${packages[@]}") >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "cannot fetch ${packages[*]}"; }

root=$work/root
for package in "$work"/archives/*.deb; do
    dpkg-deb -x "$package" "$root"
done
vmlinuz=$(find "$root" -name 'vmlinuz*' -type f | head -1)
modules=$(find "$root" -path '*/lib/modules/*/kernel' -type d | head -1)
modules=${modules%/kernel}
[ -n "$vmlinuz" ] && [ -n "$modules" ] || fail "${packages[*]}: no image or no modules in it"
release=${modules##*/}

# Networks, ciphers and what they need; drivers of real hardware stay out.
tree=$work/tree/lib/modules/$release
mkdir -p "$tree"
cp "$modules"/modules.{builtin,builtin.modinfo,order} "$tree"
(cd "$modules" && find kernel/{net,crypto,lib,arch,drivers/net} kernel/fs/overlayfs \
    -path kernel/drivers/net/ethernet -prune -o -type f -print | cpio --quiet -pdm "$tree")
find "$tree" -name '*.xz' -exec unxz {} +
depmod -b "$work/tree" "$release"
(cd "$work/tree" && find . | sort | cpio --quiet -o -H newc -R 0:0) >"$work/modules.cpio"

mkdir -p "$folder"
cp "$vmlinuz" "$folder/vmlinuz"
mv "$work/modules.cpio" "$folder/modules.cpio"
echo "$release" >"$folder/release.new"
mv "$folder/release.new" "$folder/release"
echo "$folder"
