# Everything a developer does, one word each. `make` alone prints what there is.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run build test lint fuzz bench bench-quick bench-guard bench-scaling simulation soak pgo reference clean setup-build setup-test setup-lint setup-bench setup-fuzz

# Rust and Go install their programs where not every shell looks. Go's own folder comes first:
# the system's Pebble, if there is one, may be too old for the tests.
export GOBIN := $(or $(GOBIN),$(HOME)/go/bin)
export PATH := $(GOBIN):$(HOME)/.cargo/bin:$(PATH):/usr/local/go/bin:/usr/sbin

help: ## print what each target does
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

run: build ## build, then serve https://localhost:8443 with config/perennial.toml, state in ./state
	target/release/perennial run --config config/perennial.toml

build: setup-build ## install what the build needs (by apt), then build target/release/perennial
	cargo build --release --locked

test: setup-build setup-test ## install what the tests need (by apt and go install), then run all tests
# Where Pebble or step-ca is there, a test that cannot use it fails instead of being left out.
	PERENNIAL_REQUIRE_PEBBLE="$$(scripts/has-pebble.sh && echo 1)" \
	PERENNIAL_REQUIRE_STEP_CA="$$(command -v step-ca >/dev/null && echo 1)" \
	cargo test --locked --no-fail-fast

lint: setup-build setup-lint ## check format, lints, licences and the dependency tree
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --all-targets -- -D warnings
	scripts/deny.sh

bench: build setup-bench ## measure beside nginx, HAProxy and Caddy (12 to 25 minutes); OPTIONS="--hybrid ..." as in bench/README.md
	cargo run --release --locked -p perennial-bench --bin serving -- $(OPTIONS)

bench-quick: override OPTIONS += --quick
bench-quick: bench ## the main rows of it, in two minutes

bench-guard: build setup-bench ## count instructions per request and handshake, bytes per connection; fails above what is recorded (RECORD=1 records)
	cargo run --release --locked -p perennial-bench --bin guard -- $(if $(RECORD),--record)

bench-scaling: build ## measure as threads, sites, certificates, upstreams, connections grow; OPTIONS="--quick ..." as in bench/README.md
	cargo run --release --locked -p perennial-bench --bin scaling -- $(OPTIONS)

simulation: setup-build ## run two years of 10,000 names before a failing CA and host; SEED=N goes through others
	PERENNIAL_SIMULATED_NAMES=2500 $(if $(SEED),PERENNIAL_TEST_SEED=$(SEED)) \
	cargo test --locked --profile simulation --lib acme::worker::simulation::two_years -- --nocapture

soak: build setup-test ## send 10 GiB each way by h1 and by h2; fails where resident memory grows; OPTIONS="--mib N --bound-mib N"
	cargo run --release --locked -p perennial-bench --bin soak -- $(OPTIONS)

pgo: setup-build ## build target/pgo/perennial with a profile of itself under load (two release builds)
	scripts/pgo.sh

fuzz: setup-build setup-fuzz ## run each fuzz target for a minute (FUZZ_SECONDS=60)
	scripts/fuzz.sh

reference: setup-build ## write docs/configuration.md and its JSON schema anew, from the tables of keys
	cargo run --locked -- schema > docs/configuration.schema.json
	cargo run --locked -- schema --markdown > docs/configuration.md

clean: ## remove build results; keeps ./state, where keys and certificates are
	cargo clean

setup-build:
	@scripts/setup-build.sh

setup-test: setup-build
	@scripts/setup-test.sh

setup-lint: setup-build
	@scripts/setup-lint.sh

setup-bench: setup-build
	@scripts/setup-bench.sh

setup-fuzz: setup-build
	@scripts/setup-fuzz.sh
