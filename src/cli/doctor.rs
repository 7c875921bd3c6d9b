//! `perennial doctor`: what the operator has to do outside of this host, and whether it is done. It
//! reads the configuration and the state directory, asks DNS, and changes nothing.

use std::process::ExitCode;

use super::{ConfigArgs, EXIT_USAGE};
use crate::acme::account::{OnRecord, on_record};
use crate::acme::dns::standing::{self, StandingRecord};
use crate::acme::renewal::IssuerKind;
use crate::acme::subject::subjects;
use crate::certificate::name::Name;
use crate::config::{CertificateAuthority, ChallengeType, Config};

#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// One name of the configuration [default: all]
    #[arg(value_parser = parse_name)]
    name: Option<Name>,
    #[command(flatten)]
    config: ConfigArgs,
}

fn parse_name(text: &str) -> Result<Name, String> {
    text.parse().map_err(|error| format!("{text:?} {error}"))
}

/// One thing that was looked at.
struct Finding {
    about: String,
    verdict: Verdict,
}

enum Verdict {
    Good(String),
    /// What is wrong, and what to do.
    Bad {
        cause: String,
        remedy: String,
    },
}

pub(super) fn main(args: DoctorArgs) -> ExitCode {
    let config = args
        .config
        .file()
        .and_then(|file| Config::load(&file).map_err(|error| error.to_string()));
    let config = match config {
        Ok(config) => config,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match examine(&config, args.name.as_ref()) {
        Ok(findings) => report(&findings),
        Err(message) => {
            eprintln!("perennial: {message}");
            ExitCode::FAILURE
        }
    }
}

fn report(findings: &[Finding]) -> ExitCode {
    for Finding { about, verdict } in findings {
        match verdict {
            Verdict::Good(what) => println!("ok    {about}: {what}"),
            Verdict::Bad { cause, remedy } => println!("BAD   {about}: {cause}\n      {remedy}"),
        }
    }
    if findings.is_empty() {
        println!(
            "no certificate of this configuration depends on a DNS record that stands for good"
        );
    }
    let bad = |finding: &Finding| matches!(finding.verdict, Verdict::Bad { .. });
    match findings.iter().any(bad) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn examine(config: &Config, only: Option<&Name>) -> Result<Vec<Finding>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let names = ordered_names(config, only);
    if let (Some(name), true) = (only, names.is_empty()) {
        return Err(format!(
            "no site of the configuration orders {name} from an ACME CA"
        ));
    }
    let uses_records = |authority: &&CertificateAuthority| {
        authority.challenges.contains(&ChallengeType::DnsPersist01)
    };
    let mut findings = Vec::new();
    for authority in config.acme.authorities.iter().filter(uses_records) {
        let url = &authority.directory;
        let known = on_record(&config.server.state_dir, url).map_err(|error| error.to_string())?;
        for name in &names {
            let verdict = runtime.block_on(standing_record(config, &known, name));
            let about = format!("dns-persist-01 for {name} at {url}");
            findings.push(Finding { about, verdict });
        }
    }
    Ok(findings)
}

fn ordered_names(config: &Config, only: Option<&Name>) -> Vec<Name> {
    let by_acme = subjects(config).into_iter();
    let by_acme = by_acme.filter(|subject| subject.may_be_issued_by(IssuerKind::Acme));
    let names = by_acme.flat_map(|subject| subject.names);
    let wanted = |name: &Name| !matches!(name, Name::Ip(_)) && only.is_none_or(|it| it == name);
    names.filter(wanted).collect()
}

async fn standing_record(config: &Config, known: &OnRecord, name: &Name) -> Verdict {
    let bad = |cause: String, remedy: &str| Verdict::Bad {
        cause,
        remedy: remedy.to_owned(),
    };
    let Some(account) = &known.account else {
        return bad(
            "there is no account at this CA yet, and the record names it".to_owned(),
            "start perennial once, then ask again",
        );
    };
    let record = match StandingRecord::new(&known.caa_identities, account, &name.to_string()) {
        Ok(record) => record,
        Err(cause) => return bad(cause, "choose another challenge for this CA"),
    };
    match standing::is_there(&config.acme.dns, &record).await {
        Ok(true) => Verdict::Good("its TXT record is there".to_owned()),
        Ok(false) => bad(
            "its TXT record is missing".to_owned(),
            &format!("add {record}"),
        ),
        Err(error) => bad(
            error.to_string(),
            &format!("the record that should be there is {record}"),
        ),
    }
}
