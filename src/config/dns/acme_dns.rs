//! The accounts at acme-dns servers: one for everything in four keys, or one for each domain in the
//! JSON file that acme-dns's own clients keep (github.com/joohoi/acme-dns, "Clients"), or those that
//! are registered once they are needed, at a server that is named alone.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{ACME_DNS, AcmeDns, AcmeDnsAccount, SERVER, Settings};
use crate::config::diagnostic::{Problem, Report};
use crate::config::reader::Table;
use crate::config::value::domain;

const ACCOUNTS: &str = "accounts";
/// Of the one account for everything.
const ONE: [&str; 3] = ["username", "password", "subdomain"];

/// What a client has noted of one domain; some note more.
#[derive(Deserialize)]
struct Noted {
    username: String,
    password: String,
    subdomain: String,
    #[serde(default)]
    fulldomain: Option<String>,
    #[serde(default, alias = "server")]
    server_url: Option<String>,
}

/// `None`: something is wrong, and reported.
pub(super) fn accounts(
    report: &Report<'_>,
    table: &Table<'_>,
    settings: &Settings,
) -> Option<AcmeDns> {
    let registers = || settings.optional(SERVER).map(server).transpose();
    let of_one = ONE.iter().any(|key| settings.optional(key).is_some());
    let accounts = match settings.optional(ACCOUNTS) {
        Some(text) => of_file(table, settings, text).and_then(|it| Ok((it, registers()?))),
        None if !of_one && settings.optional(SERVER).is_some() => {
            registers().map(|server| (Accounts::new(), server))
        }
        None => one(table, settings).map(|it| (it, None)),
    };
    let at = table
        .get("accounts_file")
        .map_or(table.at, |value| value.at);
    report
        .keep(at, accounts)
        .map(|(accounts, registers_at)| AcmeDns {
            accounts,
            registers_at,
        })
}

type Accounts = BTreeMap<String, AcmeDnsAccount>;

fn one(table: &Table<'_>, settings: &Settings) -> Result<Accounts, Problem> {
    let needed = [SERVER].into_iter().chain(ONE);
    for key in needed {
        if settings.optional(key).is_none() {
            return Err(
                Problem::new(format!("the DNS provider {ACME_DNS:?} needs `{key}`")).help(format!(
                    "add {key} = \"...\" to {}, or accounts_file with an account for each domain",
                    table.header()
                )),
            );
        }
    }
    let account = AcmeDnsAccount {
        server: server(settings.text(SERVER))?,
        username: settings.owned("username"),
        password: settings.owned("password"),
        subdomain: settings.owned("subdomain"),
        full_domain: None,
    };
    Ok(BTreeMap::from([(String::new(), account)]))
}

fn of_file(table: &Table<'_>, settings: &Settings, text: &str) -> Result<Accounts, Problem> {
    if let Some(key) = ONE.into_iter().find(|key| settings.optional(key).is_some()) {
        let problem = format!("`{key}` is of one account, and the file has one for each domain");
        return Err(Problem::new(problem).help(format!("remove `{key}` from {}", table.header())));
    }
    // The parser's words may quote what it reads, and that is secret.
    let noted: BTreeMap<String, Noted> = serde_json::from_str(text).map_err(|error| {
        Problem::new(format!(
            "the acme-dns accounts are not what its clients write (line {}, column {})",
            error.line(),
            error.column()
        ))
        .help("an object with an account for each domain: {\"example.com\": {\"username\": \"...\", \"password\": \"...\", \"subdomain\": \"...\", \"server_url\": \"https://auth.example.org\"}}")
    })?;
    if noted.is_empty() {
        return Err(Problem::new("the file with the acme-dns accounts has none")
            .help("register one for each domain with acme-dns's client"));
    }
    let account = |(name, noted): (String, Noted)| {
        let name = domain("accounts_file", name.strip_prefix("*.").unwrap_or(&name))?;
        // What the client noted is where the account is.
        let url = noted.server_url.filter(|url| !url.is_empty());
        let url = url
            .or_else(|| settings.optional_owned(SERVER))
            .ok_or_else(|| {
                let problem =
                    format!("the acme-dns account for {name} does not say at which server");
                Problem::new(problem).help(format!(
                    "add server = \"https://auth.example.org\" to {}",
                    table.header()
                ))
            })?;
        let account = AcmeDnsAccount {
            server: server(&url)?,
            username: noted.username,
            password: noted.password,
            subdomain: noted.subdomain,
            full_domain: noted.fulldomain.filter(|it| !it.is_empty()),
        };
        Ok((name.to_string(), account))
    };
    noted.into_iter().map(account).collect()
}

/// A base URL, without the final slash.
fn server(text: &str) -> Result<String, Problem> {
    let server = text.trim_end_matches('/');
    let is_url = server.parse::<http::Uri>().is_ok_and(|url| {
        matches!(url.scheme_str(), Some("https" | "http")) && url.authority().is_some()
    });
    let problem = || {
        Problem::new(format!("{server:?} is not the URL of an acme-dns server"))
            .help("it looks like \"https://auth.example.org\"")
    };
    is_url.then(|| server.to_owned()).ok_or_else(problem)
}
