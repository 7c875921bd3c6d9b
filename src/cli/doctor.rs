//! `perennial doctor`: all that an order depends on, inside and outside of this host, and what to
//! do where it is not as it should be. It reads the configuration and the state directory, asks
//! DNS, the CAs' directories and the running process, and changes nothing.

mod orders;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::admin_client::AdminArgs;
use super::{ConfigArgs, EXIT_USAGE};
use crate::acme::account::{AccountState, Inquiry, OnRecord, on_record, slug};
use crate::acme::dns::delegation::{Delegation, delegation};
use crate::acme::dns::standing::{self, StandingRecord};
use crate::acme::history::History;
use crate::acme::limits;
use crate::acme::preflight::{self, Check, Preflight, Topic, Verdict};
use crate::acme::public_cas;
use crate::acme::renewal::IssuerKind;
use crate::acme::subject::{Subject, subjects};
use crate::admin::status::Status;
use crate::certificate::name::Name;
use crate::clock;
use crate::config::{CertificateAuthority, ChallengeType, CommandLine, Config};
use crate::store::StateDir;

/// Names that are looked at side by side.
const AT_ONCE: usize = 16;

#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// One name of the configuration [default: all]; without a configuration any name, as
    /// `perennial proxy` would order it
    #[arg(value_parser = parse_name)]
    name: Option<Name>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
    /// Look into this state directory, for a name of `perennial proxy`
    #[arg(long, value_name = "DIR", requires = "name", conflicts_with = "config")]
    state_dir: Option<PathBuf>,
    /// The CA's directory, for a name of `perennial proxy` [default: Let's Encrypt]
    #[arg(long, value_name = "URL", requires = "name", conflicts_with = "config")]
    acme_directory: Option<String>,
    /// Further roots to trust for the CA's own HTTPS (PEM), for a name of `perennial proxy`
    #[arg(
        long,
        value_name = "FILE",
        requires = "name",
        conflicts_with = "config"
    )]
    acme_ca_certificate: Option<PathBuf>,
    /// Admin API of the running perennial: host:port or unix:/path [default: the configuration's,
    /// else 127.0.0.1:2019]
    #[arg(long, visible_alias = "admin-listen", value_name = "ADDRESS")]
    admin: Option<String>,
}

fn parse_name(text: &str) -> Result<Name, String> {
    text.parse().map_err(|error| format!("{text:?} {error}"))
}

/// One thing that was looked at.
#[derive(Clone, Serialize)]
struct Finding {
    /// A name, a CA, or both.
    about: String,
    #[serde(flatten)]
    check: Check,
}

pub(super) fn main(args: DoctorArgs) -> ExitCode {
    let config = match configuration(&args) {
        Ok(config) => config,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let admin = args.admin.map(AdminArgs::at);
    let admin = admin.or_else(|| AdminArgs::of(&config.server.admin_listen));
    let seen = Seen::of(&config, admin.as_ref());
    match examine(config, args.name.as_ref(), admin) {
        Ok(findings) => report(&seen, &findings, args.json),
        Err(message) => {
            eprintln!("perennial: {message}");
            ExitCode::FAILURE
        }
    }
}

/// That of the file. Where none is named, and what `perennial proxy` takes is, or there is no file
/// either: what `perennial proxy NAME=...` has.
fn configuration(args: &DoctorArgs) -> Result<Config, String> {
    let as_proxy = args.state_dir.is_some()
        || args.acme_directory.is_some()
        || args.acme_ca_certificate.is_some();
    match (args.config.clone().file(), &args.name) {
        (Ok(file), _) if !as_proxy => Config::load(&file).map_err(|error| error.to_string()),
        (_, Some(name)) => Config::from_command_line(CommandLine {
            sites: vec![format!("{name}=respond:doctor")],
            state_dir: args.state_dir.clone(),
            acme_directory: args.acme_directory.clone(),
            acme_ca_certificate: args.acme_ca_certificate.clone(),
            ..CommandLine::default()
        })
        .map_err(|error| error.to_string()),
        (Err(message), None) => Err(format!("{message}, or name a host to look at")),
        // The command line wants a name beside what `perennial proxy` takes.
        (Ok(_), None) => Err("name a host to look at".to_owned()),
    }
}

/// What was looked at: a default is easily mistaken for what somebody meant.
struct Seen {
    config: Option<PathBuf>,
    state_dir: PathBuf,
    cas: Vec<String>,
    admin: Option<String>,
}

impl Seen {
    fn of(config: &Config, admin: Option<&AdminArgs>) -> Seen {
        let cas = config.acme.authorities.iter();
        Seen {
            config: config.path.clone(),
            state_dir: config.server.state_dir.clone(),
            cas: cas.map(|ca| ca.directory.clone()).collect(),
            admin: admin.map(|admin| admin.address().to_owned()),
        }
    }

    fn print(&self) {
        match &self.config {
            Some(path) => println!("configuration {}", path.display()),
            None => println!("no configuration: as `perennial proxy` has it by default"),
        }
        println!("state directory {}", self.state_dir.display());
        println!("CA {}", self.cas.join(", "));
        println!("admin API {}", self.admin.as_deref().unwrap_or("off"));
    }
}

fn report(seen: &Seen, findings: &[Finding], json: bool) -> ExitCode {
    if json {
        match serde_json::to_string_pretty(findings) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("perennial: {error}"),
        }
    } else {
        seen.print();
        findings.iter().for_each(print);
        if findings.is_empty() {
            println!("no site of this configuration has certificates from an ACME CA");
        }
    }
    let fails = |finding: &Finding| finding.check.verdict == Verdict::Fails;
    match findings.iter().any(fails) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn print(finding: &Finding) {
    let Finding { about, check } = finding;
    let verdict = match check.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Fails => "FAILS",
    };
    println!(
        "{verdict:8} {about}: {}: {}",
        check.topic.as_str(),
        check.cause
    );
    if let Some(remedy) = &check.remedy {
        println!("         {remedy}");
    }
}

/// A name, and the certificate that is to have it.
#[derive(Clone)]
struct Wanted {
    name: Name,
    subject: Arc<Subject>,
}

fn examine(
    config: Config,
    only: Option<&Name>,
    admin: Option<AdminArgs>,
) -> Result<Vec<Finding>, String> {
    let names = ordered_names(&config, only);
    if let (Some(name), true) = (only, names.is_empty()) {
        return Err(format!(
            "no site of the configuration orders {name} from an ACME CA"
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    // Outside of it: the client of the admin API has a runtime of its own.
    let server = Server::of(&config, &names, admin);
    let config = Arc::new(config);
    runtime.block_on(async {
        let mut findings: Vec<Finding> = server.stranger.iter().cloned().collect();
        findings.extend(look_here(&config, &names, &server).await);
        for authority in &config.acme.authorities {
            if !names.is_empty() {
                findings.extend(look_at_authority(&config, authority, &names, &server).await?);
            }
        }
        Ok(findings)
    })
}

/// The running process.
struct Server {
    /// `None` where none answers.
    status: Option<Status>,
    /// What it sees of itself, for each name; `None` where it does not have the name.
    preflights: Vec<Option<Vec<Check>>>,
    /// That it is another than the one in question.
    stranger: Option<Finding>,
}

impl Server {
    fn of(config: &Config, names: &[Wanted], admin: Option<AdminArgs>) -> Server {
        let status: Option<Status> = admin.as_ref().and_then(|it| it.get("/status").ok());
        let own = &config.server.state_dir;
        let (status, other) = match status {
            Some(status) if !is_same(own, &status.state_dir) => (None, Some(status.state_dir)),
            status => (status, None),
        };
        let preflight = |wanted: &Wanted| {
            let path = format!("/certificates/{}/preflight", wanted.name);
            admin.as_ref()?.post(&path).ok()
        };
        let asked = names.iter().map(|wanted| match status {
            Some(_) => preflight(wanted),
            None => None,
        });
        Server {
            preflights: asked.collect(),
            status,
            stranger: other.map(|other| Finding {
                about: own.display().to_string(),
                check: Check::warning(
                    Topic::StateDirectory,
                    format!(
                        "the perennial that answers at the admin API has another one, {}: it is not \
                         asked",
                        other.display()
                    ),
                    "name its state directory, or the admin API of the one that you mean (--admin)",
                ),
            }),
        }
    }
}

/// Whether both are one directory, as far as can be known: a relative one is where its process is.
fn is_same(own: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    own.is_relative() || other.is_relative() || real(own) == real(other)
}

/// The way to each name, the disk, and what came of the last order.
async fn look_here(config: &Arc<Config>, names: &[Wanted], server: &Server) -> Vec<Finding> {
    let each = names.iter().zip(server.preflights.iter().cloned());
    let each = stream::iter(each).map(|(wanted, answer)| {
        let config = Arc::clone(config);
        async move {
            let checks = match (answer, config.acme.authorities.first()) {
                (Some(checks), _) => checks,
                (None, Some(authority)) => {
                    let known = OnRecord::default();
                    let preflight = preflight_of(&config, authority, &wanted.name, &known);
                    preflight.here().await
                }
                (None, None) => Vec::new(),
            };
            (wanted, checks)
        }
    });
    let each: Vec<(&Wanted, Vec<Check>)> = each.buffered(AT_ONCE).collect().await;
    let mut cas = config.acme.authorities.iter();
    let public = cas.any(|authority| public_cas::is_public(&authority.directory));
    let mut findings: Vec<Finding> = Vec::new();
    for (Wanted { name, .. }, mut checks) in each {
        let status = server.status.as_ref();
        checks.extend(status.and_then(|status| orders::of_server(status, name)));
        for check in checks {
            let check = if public { check } else { check.as_advice() };
            // The disk is the same for each name.
            let of_disk = check.topic == Topic::StateDirectory;
            let told = findings.iter().any(|it| of_disk && it.check == check);
            let about = match of_disk {
                true => config.server.state_dir.display().to_string(),
                false => name.to_string(),
            };
            if !told {
                findings.push(Finding { about, check });
            }
        }
    }
    findings
}

fn preflight_of(
    config: &Config,
    authority: &CertificateAuthority,
    name: &Name,
    known: &OnRecord,
) -> Preflight {
    Preflight {
        name: name.clone(),
        dns: config.acme.dns.clone(),
        identities: known.caa_identities.clone(),
        account: known.account.clone(),
        challenges: authority.challenges.clone(),
        clock_offset: None,
        state_dir: config.server.state_dir.clone(),
        answers: None,
    }
}

/// What depends on one CA.
async fn look_at_authority(
    config: &Arc<Config>,
    authority: &CertificateAuthority,
    names: &[Wanted],
    server: &Server,
) -> Result<Vec<Finding>, String> {
    let url = &authority.directory;
    let mut known = on_record(&config.server.state_dir, url).map_err(|error| error.to_string())?;
    let mut findings: Vec<Finding> = ask_authority(config, authority, &mut known)
        .await
        .into_iter()
        .map(|check| Finding {
            about: url.clone(),
            check,
        })
        .collect();
    let (known, server) = (&known, server.status.as_ref());
    let each = stream::iter(names).map(|wanted| async move {
        let checks = look_at_name(config, authority, known, wanted).await;
        let last = match server {
            None => {
                let state = StateDir::at(&config.server.state_dir);
                orders::on_disk(&state, authority, &wanted.subject)
            }
            // It has said what it knows.
            Some(_) => None,
        };
        (&wanted.name, checks.into_iter().chain(last))
    });
    let each: Vec<_> = each.buffered(AT_ONCE).collect().await;
    for (name, checks) in each {
        findings.extend(checks.map(|check| Finding {
            about: format!("{name} at {url}"),
            check,
        }));
    }
    Ok(findings)
}

/// The directory and what it wants, the clock, our account.
async fn ask_authority(
    config: &Config,
    authority: &CertificateAuthority,
    known: &mut OnRecord,
) -> Vec<Check> {
    let state_dir = &config.server.state_dir;
    let inquiry = match Inquiry::of(authority, state_dir).await {
        Ok(inquiry) => inquiry,
        Err(error) => {
            let remedy = error.remedy(authority);
            return vec![Check::fails(Topic::Directory, error.to_string(), remedy)];
        }
    };
    known.caa_identities = inquiry.directory.caa_identities.clone();
    let state = inquiry.account().await;
    let has_account = !matches!(state, AccountState::Missing);
    let account_dir = StateDir::at(state_dir)
        .accounts_dir()
        .join(slug(&authority.directory));
    let demands = preflight::authority::demands(&inquiry.directory, authority, has_account);
    let mut checks = vec![
        Check::ok(Topic::Directory, "it answers"),
        preflight::clock(inquiry.clock_offset()),
    ];
    // That the first order makes one is no news where it cannot.
    let demands_account = demands.iter().any(|it| it.topic == Topic::Account);
    if !demands_account {
        checks.push(preflight::authority::account(
            &state,
            &authority.directory,
            &account_dir,
        ));
    }
    checks.extend(demands);
    checks
}

/// What one name depends on at one CA.
async fn look_at_name(
    config: &Config,
    authority: &CertificateAuthority,
    known: &OnRecord,
    Wanted { name, .. }: &Wanted,
) -> Vec<Check> {
    let preflight = preflight_of(config, authority, name, known);
    let mut checks: Vec<Check> = preflight.caa_alone().await.into_iter().collect();
    if authority.challenges.contains(&ChallengeType::DnsPersist01) && !matches!(name, Name::Ip(_)) {
        checks.push(standing_record(config, known, name).await);
    }
    if authority.challenges.contains(&ChallengeType::Dns01) {
        checks.extend(challenge_alias(config, name).await);
    }
    checks.extend(limit(config, authority, name));
    checks
}

/// Whether one more order would break a limit of the CA, as far as the ledger knows.
fn limit(config: &Config, authority: &CertificateAuthority, name: &Name) -> Option<Check> {
    let now = clock::now();
    let (state, limits) = (StateDir::at(&config.server.state_dir), &authority.limits);
    let keep = limits::memory(limits);
    let history = History::peek(&state, &slug(&authority.directory), keep, now).ok()?;
    let names = std::slice::from_ref(name);
    let broken = history.judge(|past| limits::order(now, limits, past, names, false));
    Some(match broken {
        None => Check::ok(Topic::Limits, "an order may be sent"),
        Some(broken) => Check::warning(
            Topic::Limits,
            broken.to_string(),
            "nothing is to be done but to wait; [acme.limits] says what is counted",
        ),
    })
}

fn ordered_names(config: &Config, only: Option<&Name>) -> Vec<Wanted> {
    let by_acme = subjects(config).into_iter();
    let by_acme = by_acme.filter(|subject| subject.may_be_issued_by(IssuerKind::Acme));
    let names = by_acme.flat_map(|subject| {
        let subject = Arc::new(subject);
        let each = subject.names.clone().into_iter();
        each.map(move |name| Wanted {
            name,
            subject: Arc::clone(&subject),
        })
    });
    names
        .filter(|wanted| only.is_none_or(|it| *it == wanted.name))
        .collect()
}

/// Whether an acme-dns server is led to; `None` where none is for the name.
async fn challenge_alias(config: &Config, name: &Name) -> Option<Check> {
    let state = StateDir::at(&config.server.state_dir);
    let name = name.to_string();
    let domain = name.strip_prefix("*.").unwrap_or(&name);
    let looked = delegation(&config.acme.dns, &state, domain).await?;
    let fails = |cause: String, remedy: String| Check::fails(Topic::Delegation, cause, remedy);
    Some(match looked {
        Ok(Delegation::Leads) => {
            Check::ok(Topic::Delegation, "its challenge name leads to acme-dns")
        }
        Ok(Delegation::Missing { wanted, found }) => fails(
            format!("its challenge name does not lead to its acme-dns account, but to {found}"),
            format!("add {wanted}"),
        ),
        Ok(Delegation::Unregistered { server }) => Check::warning(
            Topic::Delegation,
            format!("it has no account at {server} yet"),
            "start perennial, which registers one at the first order, then ask again",
        ),
        Err(error) => fails(
            error.to_string(),
            "look at this host's DNS resolvers, and at the file if one is named".to_owned(),
        ),
    })
}

async fn standing_record(config: &Config, known: &OnRecord, name: &Name) -> Check {
    let bad = |cause: String, remedy: String| Check::fails(Topic::StandingRecord, cause, remedy);
    let Some(account) = &known.account else {
        return bad(
            "there is no account at this CA yet, and the record names it".to_owned(),
            "start perennial once, then ask again".to_owned(),
        );
    };
    let terms = known.terms.clone().or(&known.caa_identities, account);
    let record = match StandingRecord::new(&terms, &name.to_string()) {
        Ok(record) => record,
        Err(cause) => {
            let remedy = "the first order asks the challenge: start perennial, then ask again; if \
                          it says nothing either, choose another challenge for this CA";
            return bad(cause, remedy.to_owned());
        }
    };
    match standing::is_there(&config.acme.dns, &record).await {
        Ok(true) => Check::ok(Topic::StandingRecord, "its TXT record is there"),
        Ok(false) => bad(
            "its TXT record is missing".to_owned(),
            format!("add {record}"),
        ),
        Err(error) => bad(
            error.to_string(),
            format!("the record that should be there is {record}"),
        ),
    }
}
