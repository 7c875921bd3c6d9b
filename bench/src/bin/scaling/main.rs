//! Scaling: Perennial beside itself, as there are more threads, sites, certificates, upstreams and
//! connections. Prints Markdown: a table for each, and whether it is flat or linear. See
//! bench/README.md.

mod cell;
mod configuration;
mod growth;
mod options;
mod rows;
mod table;

use std::process::ExitCode;

use perennial_bench::cores::Split;
use perennial_bench::process::raise_descriptors;
use perennial_bench::servers::Kind;

use options::Options;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error}");
            eprintln!(
                "usage: scaling [--quick] [--only threads,sites,certificates,upstreams,connections] \
                 [--rounds N] [--seconds N] [--client-cores N] [--perennial FILE]"
            );
            return ExitCode::from(64);
        }
    };
    raise_descriptors();
    let split = Split::new(options.client_cores);
    let directory = tempfile::tempdir().expect("a folder");
    println!("{}", machine(&options, &split));
    for dimension in &options.dimensions {
        println!(
            "{}",
            rows::measure(*dimension, &options, &split, directory.path())
        );
    }
    ExitCode::SUCCESS
}

fn machine(options: &Options, split: &Split) -> String {
    let version = Kind::Perennial.version(&options.perennial);
    format!(
        "- {}; the server's cores {:?}, the client's and the upstream's {:?}\n\
         - {} rounds of {:.1} s, each after {:.1} s of warming up; the rows take turns, and the \
         server is started anew each time. Medians, and least to most",
        version.unwrap_or_default(),
        split.server,
        split.client,
        options.rounds,
        options.window.as_secs_f64(),
        options.warm_up.as_secs_f64(),
    )
}
