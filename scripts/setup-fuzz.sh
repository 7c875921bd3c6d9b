#!/bin/sh
# Installs what `make fuzz` needs and this machine lacks: cargo-fuzz. libFuzzer itself is a
# dependency of the fuzz targets, and the address sanitizer comes with Rust.
set -eu
cd "$(dirname "$0")/.."

CARGO_FUZZ_VERSION=0.13.2

if ! cargo fuzz --version >/dev/null 2>&1; then
    # It only starts cargo and the targets: an unoptimised build is made sooner.
    echo "installing cargo-fuzz $CARGO_FUZZ_VERSION (an unoptimised build; about a minute)"
    CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --debug "cargo-fuzz@$CARGO_FUZZ_VERSION"
fi
