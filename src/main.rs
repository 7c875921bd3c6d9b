//! The `perennial` program. Everything it does is in the library; here is only its exit code.

use std::process::ExitCode;

/// For BoringSSL too: the feature `override` puts it in malloc's place.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // mimalloc asks for huge pages, and of each of them mostly a corner is used: that is twice the
    // memory of a small process. Where the kernel knows no such request it has none either.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    perennial::cli::main()
}
