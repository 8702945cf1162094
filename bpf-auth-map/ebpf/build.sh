#!/bin/sh
# Builds the gates into ../src/handfast.bpf.o, the object that is committed.
#   build.sh           builds and writes it
#   build.sh --check   builds and fails if the committed one differs
# Needs bpf-linker and a compiler whose own library source is installed: either Debian's rustc-web with
# rust-web-src, or a rustup nightly with the component rust-src. CONTRIBUTING.md says how to get them; the
# release of the compiler is pinned below, since another one gives other bytes.
# Variables: RUSTC, CARGO, BPF_LINKER name other programs than those found.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
object=$here/../src/handfast.bpf.o
wanted='1.96.'

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

# Prefers what the caller names, then Debian's pair, then a rustup nightly.
choose() {
    if [ -n "${RUSTC:-}" ]; then
        cargo=${CARGO:-cargo} rustc=$RUSTC
    elif [ -x /usr/bin/rustc ] && [ -d "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library" ]; then
        cargo=${CARGO:-/usr/bin/cargo} rustc=/usr/bin/rustc
    elif command -v rustup >/dev/null 2>&1 && rustc=$(rustup which --toolchain nightly rustc 2>/dev/null); then
        cargo=${CARGO:-$(rustup which --toolchain nightly cargo)}
    else
        fail "no compiler with its library source: apt-get install rustc-web rust-web-src cargo-web, or rustup toolchain install nightly -c rust-src"
    fi
    sysroot=$("$rustc" --print sysroot)
    library=$sysroot/lib/rustlib/src/rust/library
    [ -d "$library" ] || fail "$rustc has no library source in $library"
    linker=${BPF_LINKER:-$(command -v bpf-linker || echo "$HOME/.cache/handfast/tools/bin/bpf-linker")}
    [ -x "$linker" ] || fail "no bpf-linker: cargo install bpf-linker"
}

build() {
    case $("$rustc" --version) in
    "rustc $wanted"*) ;;
    *) echo "build.sh: $("$rustc" --version) instead of $wanted*: the bytes may differ from the committed ones" >&2 ;;
    esac
    library=$(cd "$library" && pwd -P)
    # Where this lies must not show in the bytes. Cargo names crates after their folder and RUSTFLAGS, so paths
    # are given to rustc behind its back, and our own crates are told apart by name alone.
    wrapper=$here/target/rustc
    mkdir -p "$here/target"
    cat >"$wrapper" <<END
#!/bin/sh
rustc=\$1
shift
ours=
for arg; do
    case \$arg in handfast | handfast_layout) ours=1 ;; esac
done
for arg; do
    case \$ours\$arg in 1metadata=*) arg=metadata=handfast ;; esac
    set -- "\$@" "\$arg"
    shift
done
exec "\$rustc" "\$@" --remap-path-prefix="$here"=ebpf --remap-path-prefix="$(cd "$here/../layout" && pwd)"=layout \\
    --remap-path-prefix="$library"=library --remap-path-prefix="${CARGO_HOME:-$HOME/.cargo}"=cargo
END
    chmod +x "$wrapper"
    (
        cd "$here"
        unset CARGO_TARGET_DIR CARGO_BUILD_TARGET CARGO_ENCODED_RUSTFLAGS RUSTC_WORKSPACE_WRAPPER
        PATH=$(dirname "$linker"):$PATH RUSTC=$rustc RUSTC_WRAPPER=$wrapper RUSTC_BOOTSTRAP=1 \
            RUSTFLAGS="-Clinker=$(basename "$linker") -Clink-arg=--btf -Ctarget-cpu=v3" \
            "$cargo" build --quiet --locked --release \
            -Zbuild-std=core --target bpfel-unknown-none --target-dir "$here/target"
    )
    built=$here/target/bpfel-unknown-none/release/handfast
}

choose
build
case ${1:-} in
'')
    cp "$built" "$object"
    echo "wrote $(wc -c <"$object") bytes, sha256 $(sha256sum <"$object" | cut -c1-16)"
    ;;
--check)
    cmp "$built" "$object" || fail "the committed object is not what this source gives: run bpf-auth-map/ebpf/build.sh and commit it"
    echo "the committed object is what this source gives"
    ;;
*) fail "usage: build.sh [--check]" ;;
esac
