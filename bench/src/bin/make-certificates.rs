//! `make-certificates DIR COUNT`: writes COUNT distinct P-256 pairs for trying things out.

use std::path::PathBuf;

use perennial_bench::certificates::{Authority, write_all};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(directory), Some(Ok(count))) = (
        arguments.next().map(PathBuf::from),
        arguments.next().map(|text| text.parse()),
    ) else {
        eprintln!("usage: make-certificates DIR COUNT");
        std::process::exit(64);
    };
    write_all(&Authority::new(), &directory, count);
}
