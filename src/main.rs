//! The `perennial` program. Everything it does is in the library; here is only its exit code.

use std::process::ExitCode;

/// For BoringSSL too: the feature `override` puts it in malloc's place.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    perennial::cli::main()
}
