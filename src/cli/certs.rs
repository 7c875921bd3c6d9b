//! `perennial certs`.

use std::process::ExitCode;

use super::admin_client::{AdminArgs, AdminClientError};
use super::status::print_certificates;
use crate::acme::account::revocation::RevocationReason;
use crate::acme::error::{Class, ErrorReport};
use crate::admin::status::{CertificateStatus, NameStatus, Sighting, Status};
use crate::certificate::name::Name;

#[derive(Debug, clap::Args)]
pub(super) struct CertsArgs {
    #[command(subcommand)]
    command: CertsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum CertsCommand {
    /// List all certificates
    List(ListArgs),
    /// Show the certificates for a name
    Show(NameArgs),
    /// Order a new certificate for a name now
    Renew(RenewArgs),
    /// Have the CA revoke the certificate for a name, and replace it
    Revoke(RevokeArgs),
    /// Take a certificate out of service; it is archived, and kept until it expires
    Delete(DeleteArgs),
    /// Take accounts and certificates of another ACME client over
    Import(super::import::ImportArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct NameArgs {
    #[arg(value_parser = parse_name)]
    name: Name,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, clap::Args)]
struct RenewArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Ask the CA whether it is time, and order only if it is
    #[arg(long)]
    if_due: bool,
}

#[derive(Debug, clap::Args)]
struct RevokeArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Why, as RFC 5280 spells it: unspecified, keyCompromise, affiliationChanged, superseded,
    /// cessationOfOperation or privilegeWithdrawn
    #[arg(long, default_value = "unspecified")]
    reason: RevocationReason,
}

#[derive(Debug, clap::Args)]
struct DeleteArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Even if a site has it: a new one is ordered then
    #[arg(long)]
    force: bool,
}

fn parse_name(text: &str) -> Result<Name, String> {
    text.parse().map_err(|error| format!("{text:?} {error}"))
}

pub(super) fn main(args: CertsArgs) -> ExitCode {
    exit(match args.command {
        CertsCommand::Import(args) => return super::import::main(args),
        CertsCommand::List(args) => list(&args),
        CertsCommand::Show(args) => show(&args),
        CertsCommand::Renew(args) => renew(&args),
        CertsCommand::Revoke(args) => revoke(&args),
        CertsCommand::Delete(args) => delete(&args),
    })
}

/// The exit code of a command that talked to the admin API; an error is printed.
pub(super) fn exit(result: Result<(), impl std::fmt::Display>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perennial: {error}");
            ExitCode::FAILURE
        }
    }
}

fn certificates(admin: &AdminArgs) -> Result<Vec<CertificateStatus>, AdminClientError> {
    Ok(admin.get::<Status>("/status")?.certificates)
}

fn list(args: &ListArgs) -> Result<(), AdminClientError> {
    let certificates = certificates(&args.admin)?;
    if args.json {
        print_json(&certificates);
    } else {
        print_certificates(&certificates);
    }
    Ok(())
}

fn show(args: &NameArgs) -> Result<(), AdminClientError> {
    let path = format!("/certificates/{}", args.name);
    let found = args.list.admin.get::<NameStatus>(&path)?.certificates;
    if args.list.json {
        print_json(&found);
    } else {
        found.iter().for_each(print_details);
    }
    Ok(())
}

fn renew(args: &RenewArgs) -> Result<(), AdminClientError> {
    let NameArgs { name, list } = &args.name;
    let query = if args.if_due { "?if_due=true" } else { "" };
    let path = format!("/certificates/{name}/renew{query}");
    let decision: serde_json::Value = list.admin.post(&path)?;
    if list.json {
        println!("{decision:#}");
    } else {
        let text = decision["decision"].as_str().unwrap_or("accepted");
        let until = decision["until"].as_str().map(|at| format!(", until {at}"));
        println!("{name}: {text}{}", until.unwrap_or_default());
    }
    Ok(())
}

fn revoke(args: &RevokeArgs) -> Result<(), AdminClientError> {
    let NameArgs { name, list } = &args.name;
    let reason = args.reason.as_str();
    let path = format!("/certificates/{name}/revoke?reason={reason}");
    let answer: serde_json::Value = list.admin.post(&path)?;
    if list.json {
        println!("{answer:#}");
        return Ok(());
    }
    let text = |field: &str| answer[field].as_str().unwrap_or("?").to_owned();
    let names = answer["names"].as_array().into_iter().flatten();
    let names: Vec<&str> = names.filter_map(|name| name.as_str()).collect();
    let verb = match answer["already_revoked"] == true {
        true => "was revoked before",
        false => "revoked",
    };
    println!(
        "{verb}: the certificate for {} with serial {} by {}",
        names.join(", "),
        text("serial"),
        text("ca")
    );
    println!(
        "  reason {}, signed with the {}",
        text("reason"),
        text("by")
    );
    match answer["replacement"]["decision"].as_str() {
        Some(decision) => println!("  replacement: {decision}"),
        None => println!("  no site has it: nothing replaces it"),
    }
    Ok(())
}

fn delete(args: &DeleteArgs) -> Result<(), AdminClientError> {
    let NameArgs { name, list } = &args.name;
    let query = if args.force { "?force=true" } else { "" };
    let path = format!("/certificates/{name}/delete{query}");
    let answer: serde_json::Value = list.admin.post(&path)?;
    if list.json {
        println!("{answer:#}");
        return Ok(());
    }
    for path in answer["archived"].as_array().into_iter().flatten() {
        println!("archived: {}", path.as_str().unwrap_or("?"));
    }
    println!("it is served until something better is there, or the process ends");
    if answer["used"] == true {
        println!("a site has the name: a new certificate is ordered");
    }
    Ok(())
}

fn print_json(certificates: &[CertificateStatus]) {
    match serde_json::to_string_pretty(certificates) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("perennial: {error}"),
    }
}

/// What the last error, as one sentence, cannot say.
fn print_error(error: &ErrorReport) {
    let text = |label: &str, value: &Option<String>| {
        if let Some(value) = value {
            println!("    {label:12} {value}");
        }
    };
    let class = match error.class {
        Class::Permanent => "permanent: the CA will say the same until something changes",
        Class::Retryable => "retryable: time may heal it",
        Class::RateLimited => "rate-limited: the CA asks for patience",
        Class::Operator => "operator's: somebody has to do something first",
    };
    text("kind", &Some(class.to_owned()));
    text("problem", &error.problem);
    text("identifier", &error.identifier);
    text("challenge", &error.challenge);
    for sub in &error.subproblems {
        let of = sub.identifier.as_deref().unwrap_or("-");
        let problem = sub.problem.as_deref().unwrap_or("-");
        text(
            "subproblem",
            &Some(format!("{of}: {} ({problem})", sub.detail)),
        );
    }
    text("remedy", &error.remedy);
    text("unpause at", &error.unpause_url);
}

fn print_details(certificate: &CertificateStatus) {
    let line = |label: &str, value: &Option<String>| {
        if let Some(value) = value {
            println!("  {label:14} {value}");
        }
    };
    println!("{}", certificate.name);
    line("verdict", &certificate.why);
    line("names", &Some(certificate.names.join(", ")));
    line("source", &Some(certificate.source.clone()));
    line(
        "file",
        &certificate
            .path
            .as_ref()
            .map(|path| path.display().to_string()),
    );
    line("serial", &certificate.serial);
    line("fingerprint", &certificate.fingerprint);
    let seen = |sighting: &Option<Sighting>| {
        let sighting = sighting.as_ref()?;
        let what = sighting.fingerprint.as_deref().unwrap_or("none");
        Some(format!("{what} (seen {})", sighting.seen_at))
    };
    line("on disk", &seen(&certificate.fingerprints.on_disk));
    line("loaded", &seen(&certificate.fingerprints.loaded));
    line("served", &seen(&certificate.fingerprints.served));
    line("difference", &certificate.difference);
    line("issuer", &certificate.issuer);
    line("not before", &certificate.not_before);
    line("not after", &certificate.not_after);
    line("loaded at", &certificate.loaded_at);
    line("overdue since", &certificate.overdue_since);
    line("CA", &certificate.ca);
    line("next renewal", &certificate.next_renewal);
    line("next attempt", &certificate.next_attempt);
    line("REVOKED", &certificate.revoked);
    line("revocation", &certificate.revocation_error);
    line("queued as", &certificate.queued);
    line("last error", &certificate.last_error);
    if let Some(error) = &certificate.error {
        print_error(error);
    }
    line("explanation", &certificate.explanation_url);
    if !certificate.on_disk && certificate.serial.is_some() {
        println!("  its files are gone; it is served until something better is there");
    }
}
