//! Which name gets which certificate, by a slow and obvious reading of the rules.

use std::net::IpAddr;

use perennial::certificate::name::Name;

/// The most characters that a name of the DNS has, without the last dot.
const MAX_NAME: usize = 253;

/// What a text names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Labels(Vec<String>),
    Address(IpAddr),
}

/// What a client asks for: any case, perhaps a dot at the end, perhaps an address. `None`: nothing
/// that a certificate could be for.
pub fn host(text: &str) -> Option<Host> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Host::Address(address.to_canonical()));
    }
    let labels: Vec<String> = text.split('.').map(str::to_ascii_lowercase).collect();
    let well_formed = text.len() <= MAX_NAME && labels.iter().all(|label| !label.is_empty());
    well_formed.then_some(Host::Labels(labels))
}

/// A name, a wildcard where the first label is `*`, as a certificate or a configuration has it.
/// ASCII alone.
pub fn name(text: &str) -> Option<Host> {
    let bracketed = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = bracketed.unwrap_or(text);
    if let Ok(address) = address
        .strip_suffix('.')
        .unwrap_or(address)
        .parse::<IpAddr>()
    {
        // No dot can stand inside the brackets, nor behind the last group of an IPv6 address.
        let dotted = text.contains([':', '[']) && address_ends_in_dot(text);
        return (!dotted).then_some(Host::Address(address.to_canonical()));
    }
    let (wildcard, rest) = match text.strip_prefix("*.") {
        Some(rest) => (Some("*".to_owned()), rest),
        None => (None, text),
    };
    let Host::Labels(labels) = host(rest)? else {
        return None;
    };
    let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
    let is_label = |label: &String| label.len() <= 63 && label.chars().all(is_letter);
    let is_name = labels.iter().all(is_label);
    is_name.then(|| Host::Labels(wildcard.into_iter().chain(labels).collect()))
}

fn address_ends_in_dot(text: &str) -> bool {
    text.trim_end_matches(']').ends_with('.')
}

/// The same for a name that was parsed.
pub fn of_name(name: &Name) -> Host {
    match name {
        Name::Ip(address) => Host::Address(*address),
        Name::Dns(dns) => Host::Labels(dns.split('.').map(str::to_owned).collect()),
        Name::Wildcard(parent) => {
            let labels = std::iter::once("*").chain(parent.split('.'));
            Host::Labels(labels.map(str::to_owned).collect())
        }
    }
}

/// One name of the table: how good its certificate stands, and which it is.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: Host,
    pub standing: (bool, bool),
    pub certificate: usize,
}

/// The certificate for a host: its own, unless the one of the wildcard above it stands better.
pub fn look_up(rows: &[Row], host: &Host) -> Option<usize> {
    let find = |name: &Host| rows.iter().find(|row| row.name == *name);
    let own = find(host);
    let wildcard = match host {
        Host::Labels(labels) if labels.len() > 1 => {
            let mut labels = labels.clone();
            labels[0] = "*".to_owned();
            find(&Host::Labels(labels))
        }
        _ => None,
    };
    let best = match (own, wildcard) {
        (Some(own), Some(wildcard)) if wildcard.standing > own.standing => wildcard,
        (own, wildcard) => own.or(wildcard)?,
    };
    Some(best.certificate)
}
