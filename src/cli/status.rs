//! `perennial status`.

use std::process::ExitCode;

use super::admin_client::AdminArgs;
use crate::admin::status::{CertificateStatus, OnDemandStatus, QueueStatus, Status};

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print the admin API's JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: StatusArgs) -> ExitCode {
    let printed = if args.json {
        args.admin
            .get::<serde_json::Value>("/status")
            .map(|json| println!("{json:#}"))
    } else {
        args.admin
            .get::<Status>("/status")
            .map(|status| print(&status))
    };
    super::certs::exit(printed)
}

fn print(status: &Status) {
    println!(
        "perennial {}, up {}",
        status.version,
        duration(status.uptime_seconds)
    );
    println!("state directory {}", status.state_dir.display());
    if let Some(error) = &status.config_error {
        println!("CONFIGURATION NOT TAKEN, the one before it runs:\n{error}");
    }
    for site in &status.sites {
        let missing = if site.without_certificate.is_empty() {
            String::new()
        } else {
            format!("  NO CERTIFICATE: {}", site.without_certificate.join(", "))
        };
        println!("site {} (tls {}){missing}", site.hosts.join(", "), site.tls);
    }
    for upstream in status.upstreams.iter().filter(|upstream| !upstream.healthy) {
        println!(
            "upstream {} of {} is not well: {}",
            upstream.upstream,
            upstream.site,
            upstream.trouble.as_deref().unwrap_or("it does not answer")
        );
    }
    for file in &status.tls_files {
        if let Some(error) = &file.last_error {
            println!("{} {} {error}", file.purpose, file.path.display());
        }
    }
    if let Some(on_demand) = &status.on_demand {
        print_on_demand(on_demand);
    }
    print_certificates(&status.certificates);
    print_queue(&status.queue);
    for warning in &status.warnings {
        println!("warning: {warning}");
    }
}

/// A line for each CA at which something runs or waits.
fn print_queue(queue: &[QueueStatus]) {
    for lane in queue {
        let waiting: Vec<String> = lane
            .waiting
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(priority, count)| format!("{count} {priority}"))
            .collect();
        if lane.running == 0 && waiting.is_empty() {
            continue;
        }
        let waiting = match waiting.is_empty() {
            true => "none".to_owned(),
            false => waiting.join(", "),
        };
        let held = lane.held_by.as_ref().map(|limit| format!("; {limit}"));
        println!(
            "{} at {}: {} running, waiting: {waiting}{}",
            lane.work,
            lane.ca,
            lane.running,
            held.unwrap_or_default()
        );
    }
}

fn print_on_demand(on_demand: &OnDemandStatus) {
    println!(
        "on demand: {} certificate(s) in memory, {} handshake(s) waiting, {} name(s) refused",
        on_demand.loaded, on_demand.waiting, on_demand.refused_names
    );
    for refusal in &on_demand.refusals {
        println!(
            "  {} until {}: {}",
            refusal.name, refusal.until, refusal.cause
        );
    }
}

/// A line for each certificate, and one more for what is wrong with it.
pub(super) fn print_certificates(certificates: &[CertificateStatus]) {
    let width = certificates
        .iter()
        .map(|c| c.name.len())
        .max()
        .unwrap_or(0)
        .max(4);
    println!(
        "{:width$}  {:8}  {:20}  {:20}  SERIAL",
        "NAME", "SOURCE", "NOT AFTER", "RENEWAL"
    );
    for certificate in certificates {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        println!(
            "{:width$}  {:8}  {:20}  {:20}  {}",
            certificate.name,
            certificate.source,
            or_dash(&certificate.not_after),
            or_dash(&certificate.next_renewal),
            or_dash(&certificate.serial),
        );
        if let Some(error) = &certificate.last_error {
            println!("{:width$}  error: {error}", "");
        }
        if let Some(revoked) = &certificate.revoked {
            println!("{:width$}  REVOKED: {revoked}", "");
        }
        if let (Some(difference), None) = (&certificate.difference, &certificate.last_error) {
            println!("{:width$}  difference: {difference}", "");
        }
        if let Some(since) = &certificate.overdue_since {
            println!("{:width$}  overdue since {since}", "");
        }
        if let (Some(at), Some(_)) = (&certificate.next_attempt, &certificate.last_error) {
            println!("{:width$}  next attempt: {at}", "");
        }
    }
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
