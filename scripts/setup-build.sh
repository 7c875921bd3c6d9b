#!/bin/sh
# Installs what the build needs and this machine lacks. Safe to run again: what is there stays.
set -eu
cd "$(dirname "$0")/.."
. scripts/apt.sh

RUST_NEEDED=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)

# libclang with its headers: bindgen loads the library and reads the compiler's own headers.
has_libclang() {
    if [ -n "${LIBCLANG_PATH:-}" ]; then
        return 0
    fi
    for library in /usr/lib/llvm-*/lib/libclang.so /usr/lib64/libclang.so /usr/lib/libclang.so \
        /usr/local/lib/libclang.so /Library/Developer/CommandLineTools/usr/lib/libclang.dylib; do
        if [ -e "$library" ]; then
            return 0
        fi
    done
    return 1
}

check_rust() {
    if ! command -v cargo >/dev/null 2>&1; then
        echo "error: cargo is not installed; get Rust $RUST_NEEDED or newer from https://rustup.rs" >&2
        return 1
    fi
    rust_found=$(rustc --version | cut -d ' ' -f 2)
    if ! at_least "$rust_found" "$RUST_NEEDED"; then
        echo "error: rustc is $rust_found, and $RUST_NEEDED or newer is needed; try 'rustup update stable'" >&2
        return 1
    fi
}

check_rust
command -v cmake >/dev/null 2>&1 || need cmake "BoringSSL and AWS-LC are built with it"
command -v c++ >/dev/null 2>&1 || need g++ "the C++ compiler for BoringSSL"
command -v cc >/dev/null 2>&1 || need gcc "the C compiler for AWS-LC, and Rust's linker"
command -v make >/dev/null 2>&1 || need make "cmake writes makefiles for it"
command -v git >/dev/null 2>&1 || need git "BoringSSL's build script patches its sources with it"
command -v pkg-config >/dev/null 2>&1 || need pkg-config "build scripts look for system libraries with it"
if command -v apt-get >/dev/null 2>&1 && [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then
    need ca-certificates "cargo and go check the registries' HTTPS with it"
fi
has_libclang || need libclang-dev "bindgen reads BoringSSL's headers with it"
install_missing
