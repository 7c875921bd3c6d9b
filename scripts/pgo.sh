#!/bin/sh
# Builds target/pgo/perennial with a profile of itself under load (profile-guided optimisation):
# an instrumented build, the load of the benchmark as its training, and a build that uses what was
# counted. Twice a release build's time, and its libraries in C are built twice as well.
# Options after the name go to the training, see bench/README.md.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "error: $1" >&2
    exit 1
}

target=$(rustc -vV | sed -n 's/^host: //p')
sysroot=$(rustc --print sysroot)
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
[ -n "$llvm" ] || fail "this rustc does not say which LLVM it has: no profile of it can be read"

# Counting needs the compiler's own runtime for it, which not every packager ships.
ls "$sysroot/lib/rustlib/$target/lib"/libprofiler_builtins-*.rlib >/dev/null 2>&1 ||
    fail "this rustc ($sysroot) has no profiler_builtins for $target; rustup's toolchains have it"

# Profiles are read by the tool of the same LLVM: the one that comes with the compiler, else one of
# the same major version. An older one refuses the format.
find_profdata() {
    if [ -n "${LLVM_PROFDATA:-}" ]; then
        echo "$LLVM_PROFDATA"
        return
    fi
    own="$sysroot/lib/rustlib/$target/bin/llvm-profdata"
    if [ ! -x "$own" ] && command -v rustup >/dev/null 2>&1; then
        echo "installing the compiler's llvm-tools by rustup: llvm-profdata reads the profile" >&2
        rustup component add llvm-tools >&2 || true
    fi
    if [ -x "$own" ]; then
        echo "$own"
    else
        command -v "llvm-profdata-$llvm" || true
    fi
}
profdata=$(find_profdata)
[ -n "$profdata" ] ||
    fail "no llvm-profdata for LLVM $llvm: rustup component add llvm-tools, or the package llvm-$llvm, or LLVM_PROFDATA=FILE"

pgo="$PWD/target/pgo"
raw="$pgo/raw"
rm -rf "$raw"
mkdir -p "$raw"

# With --target the flags are for the program alone, not for build scripts, which would count, too.
build() {
    RUSTFLAGS="${RUSTFLAGS:-} $1" cargo build --release --locked --target "$target" --bin perennial
    cp "${CARGO_TARGET_DIR:-target}/$target/release/perennial" "$2"
}

echo "building the instrumented program"
build "-Cprofile-generate=$raw" "$pgo/perennial-instrumented"

echo "training"
cargo run --release --locked -p perennial-bench --bin serving -- --only perennial --quick \
    --rounds 1 --rows handshakes,resumed,h1,h2,1m --perennial "$pgo/perennial-instrumented" "$@"
# Written when a process ends, one file for each.
ls "$raw"/*.profraw >/dev/null 2>&1 || fail "the training left no profile in $raw"
"$profdata" merge -o "$pgo/merged" "$raw"/*.profraw

# Cargo goes by the name of the file, not by what is in it.
profile="$pgo/$(sha256sum "$pgo/merged" | cut -c1-16).profdata"
mv "$pgo/merged" "$profile"

echo "building with the profile"
build "-Cprofile-use=$profile" "$pgo/perennial"
echo "target/pgo/perennial is built; measure it with: target/release/guard --perennial target/pgo/perennial"
