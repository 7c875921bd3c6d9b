#!/bin/sh
# Runs each fuzz target, or those that are named, for FUZZ_SECONDS. What a target has learnt stays in
# fuzz/corpus, what it has found in fuzz/artifacts; both are only on this machine.
set -eu
cd "$(dirname "$0")/.."

FUZZ_SECONDS="${FUZZ_SECONDS:-60}"
# Longer than any input that says more than a shorter one.
MAX_BYTES=8192
# An input that takes longer is a finding: what is served waits for it.
MAX_SECONDS=10

# Sanitizers are behind flags that only a nightly compiler takes unasked. Any stable one has them.
export RUSTC_BOOTSTRAP=1

# cargo-fuzz has no --locked of its own.
if ! cargo tree --locked --manifest-path fuzz/Cargo.toml >/dev/null; then
    echo "error: bring fuzz/Cargo.lock up to date: cargo update --manifest-path fuzz/Cargo.toml --workspace" >&2
    exit 1
fi
cargo fuzz build
failed=""
for target in ${*:-$(cargo fuzz list)}; do
    echo "fuzzing $target for $FUZZ_SECONDS s"
    PERENNIAL_FUZZ_SEEDS="fuzz/corpus/$target" cargo fuzz run "$target" >/dev/null
    cargo fuzz run "$target" -- -max_total_time="$FUZZ_SECONDS" -max_len="$MAX_BYTES" \
        -timeout="$MAX_SECONDS" -print_final_stats=1 || failed="$failed $target"
done
if [ -n "$failed" ]; then
    echo "error: fuzzing has found something:$failed; the inputs are in fuzz/artifacts" >&2
    exit 1
fi
