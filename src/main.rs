//! The `perennial` program. Everything it does is in the library; here is only its exit code.

use std::process::ExitCode;

/// For BoringSSL too: the feature `override` puts it in malloc's place.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Of a huge page mostly a corner is used: that is twice the memory of a small process. mimalloc
    // is built not to ask for any (`no_thp`), but many systems give them unasked.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    perennial::cli::main()
}
