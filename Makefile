# What each target is for stands in CONTRIBUTING.md. `make demo` and `make test`
# each work alone on a fresh machine.

.PHONY: all setup build demo test test-kernels lint bench soak fuzz ebpf install

all: build

# Everything that development needs; `scripts/setup.sh run` is the part that a node needs.
setup:
	@scripts/setup.sh test

build:
	@scripts/setup.sh run
	cargo build --locked

# DEMO_ARGS="--json" or "--keep"
demo: build
	@scripts/demo.sh $(DEMO_ARGS)

test:
	@scripts/test.sh

# Inside Debian's cloud kernels, in an emulator. KERNELS="6.1 6.12 7.2", SHORT=1
# for some minutes' worth, SUITES=pattern, DEMO=1 for the demo too
test-kernels:
	@scripts/test-kernels.sh

lint:
	@scripts/lint.sh

# MINUTES, 60 unless told; HISTORIES a round, 20,000 unless told
soak:
	@scripts/soak.sh $(MINUTES)

# GROUP=ca, node or policy for one group
bench:
	@scripts/bench.sh $(GROUP)

# Rebuilds the committed eBPF object from its source.
ebpf:
	@scripts/setup.sh test
	bpf-auth-map/ebpf/build.sh

# SECONDS a target, 60 unless told; needs cargo-fuzz and a nightly.
fuzz:
	@scripts/fuzz.sh $(SECONDS)

install:
	cargo install --locked --path . --root $(or $(PREFIX),/usr/local)
