//! The configuration as a whole: what is wrong and where, what the defaults are, and that what is
//! shipped parses.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

mod broken;
mod good;
mod pools;
mod reference;
mod shipped;

fn variable(name: &str) -> Option<String> {
    (name == "EAB_KEY").then(|| "c2VjcmV0LWtleQ".to_owned())
}

fn read_text(path: &Path) -> std::io::Result<String> {
    match path.file_name().and_then(|name| name.to_str()) {
        Some("hmac.key") => Ok("c2VjcmV0LWtleQ==\n".to_owned()),
        Some("alice.users") => {
            let salt = "vI8aWBnW3fID.ZQ4/zo1G.";
            Ok(format!(
                "alice:$2b$12${salt}q1lRps.9cGLcZEiGDMVr5yUP1KUOYTa\n"
            ))
        }
        _ => Err(std::io::ErrorKind::NotFound.into()),
    }
}

fn environment() -> Environment<'static> {
    Environment {
        variable: &variable,
        read_text: &read_text,
        default_state_dir: DefaultStateDir {
            path: "/var/lib/perennial".into(),
            note: None,
        },
    }
}

/// Parses as the file `dir/p.toml`.
fn parse(text: &str) -> Result<Config, Diagnostics> {
    Config::parse(text, Path::new("dir/p.toml"), &environment())
}

fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|found| panic!("{text}\n{found}"))
}

/// The files with `extension` below `directory` of the repository.
fn files_in(directory: &str, extension: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    files
}
