#!/bin/sh
# Installs what `make lint` needs and this machine lacks: rustfmt, clippy and cargo-deny.
set -eu
cd "$(dirname "$0")/.."

CARGO_DENY_VERSION=0.20.2

# need_component COMMAND COMPONENT: a part of the Rust toolchain, added by rustup if it is there.
need_component() {
    if cargo "$1" --version >/dev/null 2>&1; then
        return 0
    fi
    if ! command -v rustup >/dev/null 2>&1; then
        echo "error: 'cargo $1' is missing, and there is no rustup to add it with; install $2 for this Rust" >&2
        return 1
    fi
    echo "adding the Rust component $2"
    rustup component add "$2"
}

need_component fmt rustfmt
need_component clippy clippy
if ! cargo deny --version >/dev/null 2>&1; then
    # An unoptimised build is made in one or two minutes and checks this tree in two seconds; the
    # release profile of cargo-deny links with fat LTO, which takes far longer and gains nothing.
    echo "installing cargo-deny $CARGO_DENY_VERSION (an unoptimised build; one or two minutes)"
    CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --debug "cargo-deny@$CARGO_DENY_VERSION"
fi
