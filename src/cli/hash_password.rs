//! `perennial hash-password`: a hash for the users of `basic_auth`.

use std::io::{self, BufRead, IsTerminal};
use std::process::ExitCode;

use argon2::Argon2;
use argon2::password_hash::PasswordHasher as _;

#[derive(Debug, clap::Args)]
pub(super) struct HashPasswordArgs {
    /// Print a whole line NAME:HASH for a file of users
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

pub(super) fn main(args: &HashPasswordArgs) -> ExitCode {
    match hash(args) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("perennial: {error}");
            ExitCode::FAILURE
        }
    }
}

fn hash(args: &HashPasswordArgs) -> Result<String, String> {
    if args.name.as_ref().is_some_and(|name| name.contains(':')) {
        return Err("a name cannot have a colon, where it ends in a file of users".to_owned());
    }
    let password = read().map_err(|error| format!("cannot read the password: {error}"))?;
    if password.is_empty() {
        return Err("the password is empty; type it, or send it to standard input".to_owned());
    }
    let hash = Argon2::default().hash_password(password.as_bytes());
    let hash = hash.map_err(|error| format!("cannot hash it: {error}"))?;
    Ok(match &args.name {
        Some(name) => format!("{name}:{hash}"),
        None => hash.to_string(),
    })
}

/// The first line of standard input; a terminal does not show it.
fn read() -> io::Result<String> {
    if io::stdin().is_terminal() {
        return rpassword::prompt_password("Password: ");
    }
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
