//! The texts that values are written as: durations, addresses, names, patterns. Every function is
//! pure and says what is wrong with a text and what would be right, never where it stood.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::diagnostic::Problem;
use super::reader::nearest;
use super::{
    AdminListen, CertificatePer, ChallengeType, ClientAuthMode, Forwarded, Glob, IpPrefix, KeyType,
    LogLevel, PathPattern, Takeover, TlsMode,
};
use crate::certificate::name::{Name, NameError};

pub(super) type Parsed<T> = Result<T, Problem>;

/// What a Unix socket address has room for, without its final NUL (`sockaddr_un`, unix(7)).
const MAX_SOCKET_PATH_BYTES: usize = 107;

pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let wrong = |why: &str| {
        Problem::new(format!("{text:?} is not a duration: {why}"))
            .help("a duration is a whole number and one of ms, s, m, h, d, such as \"30s\"")
    };
    let (digits, unit) = text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    if digits.is_empty() {
        return Err(wrong("it does not begin with a number"));
    }
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => return Err(wrong("it has no unit")),
        other => return Err(wrong(&format!("{other:?} is no unit"))),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(milliseconds))
        .map(Duration::from_millis)
        .ok_or_else(|| wrong("it is far too long"))
}

/// A duration within bounds; `least` and `most` are as they would be written.
pub(super) fn duration_between(text: &str, least: &str, most: &str) -> Parsed<Duration> {
    let value = duration(text)?;
    if value < duration(least)? || value > duration(most)? {
        return Err(Problem::new(format!("{text:?} is out of bounds"))
            .help(format!("it can be from \"{least}\" to \"{most}\"")));
    }
    Ok(value)
}

pub(super) fn listen_address(text: &str) -> Parsed<SocketAddr> {
    let wrong = |why: &str, help: String| {
        Err(Problem::new(format!("{text:?} is not a listen address: {why}")).help(help))
    };
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return wrong(
            "it has no port",
            format!("write {:?}", SocketAddr::new(ip, 443).to_string()),
        );
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return match text.parse::<u16>() {
            Ok(port) => wrong("it has no address", format!("write \":{port}\"")),
            Err(_) => wrong("it has no port", "write it as \"[::]:443\"".into()),
        };
    };
    let Ok(port) = port.parse::<u16>() else {
        return wrong(
            &format!("{port:?} is no port"),
            "a port is a number up to 65535, 0 to let the system choose".into(),
        );
    };
    match host {
        "" => Ok((Ipv6Addr::UNSPECIFIED, port).into()),
        "*" => wrong(
            "`*` is no address",
            format!("write \":{port}\" for every address"),
        ),
        _ => wrong(
            &format!("{host:?} is no IP address"),
            format!("write an address of this host, \"127.0.0.1:{port}\", or \":{port}\" for all"),
        ),
    }
}

/// A loopback address, `unix:PATH` or `off`: the admin API has no authentication.
pub(super) fn admin_listen(text: &str, base: &Path) -> Parsed<AdminListen> {
    if text == "off" {
        return Ok(AdminListen::Off);
    }
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path, base).map(AdminListen::Unix);
    }
    let address = listen_address(text)?;
    if !address.ip().to_canonical().is_loopback() {
        return Err(Problem::new(format!(
            "{text:?} is not a loopback address, and the admin API has no authentication"
        ))
        .help(
            "write \"127.0.0.1:2019\", \"[::1]:2019\", \"unix:/run/perennial/admin.sock\" or \"off\"",
        ));
    }
    Ok(AdminListen::Tcp(address))
}

/// The path of a Unix socket, relative ones against `base`.
pub(super) fn socket_path(text: &str, base: &Path) -> Parsed<PathBuf> {
    let path = file_path(text, base)?;
    if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        return Err(Problem::new(format!(
            "the socket path {} is longer than {MAX_SOCKET_PATH_BYTES} bytes",
            path.display()
        ))
        .help("put the socket into a shorter directory, such as /run"));
    }
    Ok(path)
}

/// A path, relative ones against `base`.
pub(super) fn file_path(text: &str, base: &Path) -> Parsed<PathBuf> {
    if text.is_empty() {
        return Err(Problem::new("the path is empty").help("leave the key out instead"));
    }
    if text.contains('\0') {
        return Err(Problem::new(format!("{text:?} is no path: it has a NUL")));
    }
    if text == "~" || text.starts_with("~/") {
        return Err(Problem::new(format!(
            "{text:?} begins with `~`, which only a shell expands"
        ))
        .help("write the whole path, or one relative to the configuration file"));
    }
    // Without `.` between the names, so that messages are easy to read and equal paths are equal.
    let path = base.join(text);
    let parts = path.components().filter(|part| *part != Component::CurDir);
    let path: PathBuf = parts.collect();
    Ok(match path.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => path,
    })
}

/// A host of a site.
pub(super) fn host(text: &str) -> Parsed<Name> {
    text.parse().map_err(|error: NameError| {
        let problem = Problem::new(format!("host {text:?} {error}"));
        match error {
            NameError::Wildcard => problem.help("write a wildcard as \"*.example.com\""),
            NameError::NotAHost => problem.help("write the name alone, such as \"example.com\""),
            _ => problem,
        }
    })
}

/// A domain of the list `key`, for itself and every name below it; a dot may stand before it.
pub(super) fn domain(key: &str, text: &str) -> Parsed<Arc<str>> {
    match host(text.strip_prefix('.').unwrap_or(text))? {
        Name::Dns(name) => Ok(name),
        Name::Wildcard(parent) => Err(Problem::new(format!(
            "{text:?} is a wildcard, and `{key}` lists domains"
        ))
        .help(format!(
            "write \"{parent}\", which stands for itself and every name below it"
        ))),
        Name::Ip(_) => Err(Problem::new(format!(
            "{text:?} is an address, and `{key}` lists domains"
        ))),
    }
}

pub(super) fn path_pattern(text: &str) -> Parsed<PathPattern> {
    let wrong =
        |why: &str, help: String| Err(Problem::new(format!("path {text:?} {why}")).help(help));
    if !text.starts_with('/') {
        return wrong("does not begin with `/`", format!("write \"/{text}\""));
    }
    if let Some(c) = text
        .chars()
        .find(|c| !c.is_ascii_graphic() || "?#\"<>\\^`{|}".contains(*c))
    {
        return wrong(
            &format!("has the character {c:?}, which no request path can have"),
            "write the path as it is sent, percent-encoded and without query".into(),
        );
    }
    match text.split_once('*') {
        None => Ok(PathPattern::Exact(text.to_owned())),
        Some((before, "")) if before.ends_with('/') => Ok(PathPattern::Prefix(before.to_owned())),
        Some(_) if text.contains("**") => wrong(
            "has a `**`, but a `*` stands for text within one segment",
            "write a single `*`, or end with \"/*\" for everything below".into(),
        ),
        Some((before, _)) if text.ends_with('*') && !text.ends_with("/*") => {
            let before = before.trim_end_matches('/');
            wrong(
                "has a `*` that does not follow a `/`",
                format!("write \"{before}/*\" for {before} and everything below it"),
            )
        }
        Some(_) => Ok(PathPattern::Glob(Glob::new(text))),
    }
}

/// One of several words, `what` in messages.
pub(super) fn choice<T: Clone>(what: &str, text: &str, choices: &[(&str, T)]) -> Parsed<T> {
    if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
        return Ok(value.clone());
    }
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let problem = Problem::new(format!("{text:?} is no {what}"));
    Err(match nearest(text, &words) {
        Some(word) => problem.help(format!("did you mean {word:?}?")),
        None => problem.help(format!("it can be {}", words.join(", "))),
    })
}

pub(super) fn tls_mode(text: &str) -> Parsed<TlsMode> {
    const MODES: [(&str, TlsMode); 5] = [
        ("auto", TlsMode::Auto),
        ("acme", TlsMode::Acme),
        ("internal", TlsMode::Internal),
        ("files", TlsMode::Files),
        ("off", TlsMode::Off),
    ];
    choice("TLS mode", text, &MODES)
}

pub(super) fn certificate_per(text: &str) -> Parsed<CertificatePer> {
    const UNITS: [(&str, CertificatePer); 2] = [
        ("host", CertificatePer::Host),
        ("site", CertificatePer::Site),
    ];
    choice("unit of certificates", text, &UNITS)
}

pub(super) fn log_level(text: &str) -> Parsed<LogLevel> {
    const LEVELS: [(&str, LogLevel); 5] = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    choice("log level", text, &LEVELS)
}

pub(super) fn forwarded(text: &str) -> Parsed<Forwarded> {
    const FORMS: [(&str, Forwarded); 4] = [
        ("x-forwarded", Forwarded::XForwarded),
        ("rfc7239", Forwarded::Rfc7239),
        ("both", Forwarded::Both),
        ("off", Forwarded::Off),
    ];
    choice("way to say who asked", text, &FORMS)
}

/// `10.0.0.0/8`, or one address.
pub(super) fn ip_prefix(text: &str) -> Parsed<IpPrefix> {
    IpPrefix::parse(text).ok_or_else(|| {
        Problem::new(format!("{text:?} is no network of addresses"))
            .help("write it as \"10.0.0.0/8\", \"2001:db8::/32\", or one address")
    })
}

pub(super) fn takeover(text: &str) -> Parsed<Option<Takeover>> {
    const ISSUERS: [(&str, Option<Takeover>); 3] = [
        ("acme", Some(Takeover::Acme)),
        ("internal", Some(Takeover::Internal)),
        ("off", None),
    ];
    choice("takeover", text, &ISSUERS)
}

pub(super) fn key_type(text: &str) -> Parsed<KeyType> {
    const TYPES: [(&str, KeyType); 5] = [
        ("p256", KeyType::P256),
        ("p384", KeyType::P384),
        ("rsa2048", KeyType::Rsa2048),
        ("rsa3072", KeyType::Rsa3072),
        ("rsa4096", KeyType::Rsa4096),
    ];
    choice("key type", text, &TYPES)
}

pub(super) fn client_auth_mode(text: &str) -> Parsed<ClientAuthMode> {
    const MODES: [(&str, ClientAuthMode); 2] = [
        ("require", ClientAuthMode::Require),
        ("request", ClientAuthMode::Request),
    ];
    choice("client authentication mode", text, &MODES)
}

/// The name of a server: one name, not a pattern of names.
pub(super) fn server_name(text: &str) -> Parsed<Name> {
    match host(text)? {
        Name::Wildcard(_) => Err(Problem::new(format!("server name {text:?} is a wildcard"))
            .help("write one name that the upstream's certificate has")),
        name => Ok(name),
    }
}

pub(super) fn challenge_type(text: &str) -> Parsed<ChallengeType> {
    const TYPES: [(&str, ChallengeType); 4] = [
        ("tls-alpn-01", ChallengeType::TlsAlpn01),
        ("http-01", ChallengeType::Http01),
        ("dns-01", ChallengeType::Dns01),
        ("dns-persist-01", ChallengeType::DnsPersist01),
    ];
    choice("challenge", text, &TYPES)
}

/// An ACME directory URL: HTTPS (RFC 8555 section 6.1), or plain HTTP to this very host, where
/// there is no network to protect it from.
pub(super) fn directory_url(text: &str) -> Parsed<String> {
    let wrong = |why: &str| {
        Err(
            Problem::new(format!("{text:?} is not an ACME directory URL: {why}"))
                .help("it looks like https://acme-v02.api.letsencrypt.org/directory"),
        )
    };
    let Ok(url) = text.parse::<http::Uri>() else {
        return wrong("it is not a URL");
    };
    let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return wrong("it does not begin with https://");
    };
    if authority.host().is_empty() || authority.as_str().contains('@') || text.contains('#') {
        return wrong("it needs a host, and can have neither user nor fragment");
    }
    match scheme {
        "https" => Ok(text.to_owned()),
        "http" if is_loopback_host(authority.host()) => Ok(text.to_owned()),
        "http" => wrong("plain http is for a CA on this host alone"),
        _ => wrong("it does not begin with https://"),
    }
}

fn is_loopback_host(host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

pub(super) fn email(text: &str) -> Parsed<String> {
    let is_plain = |part: &str| {
        !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    match text.rsplit_once('@') {
        _ if text.starts_with("mailto:") => Err(Problem::new(format!(
            "{text:?} is a URL, not an e-mail address"
        ))
        .help("leave the mailto: out")),
        Some((local, domain)) if is_plain(local) && is_plain(domain) => Ok(text.to_owned()),
        _ => Err(Problem::new(format!("{text:?} is not an e-mail address"))
            .help("it looks like ops@example.com")),
    }
}

/// Some text that a CA gave: a profile name, a key identifier.
pub(super) fn token(what: &str, text: &str) -> Parsed<String> {
    if text.is_empty() {
        return Err(Problem::new(format!("the {what} is empty")).help("leave the key out instead"));
    }
    Ok(text.to_owned())
}

/// A secret that is written out, or named as `${NAME}`. The text never appears in a message.
pub(super) fn secret(
    key: &str,
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Parsed<String> {
    let name = text
        .strip_prefix("${")
        .and_then(|rest| rest.strip_suffix('}'));
    let Some(name) = name else {
        return Ok(text.to_owned());
    };
    variable(name)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| {
            Problem::new(format!(
                "the environment variable {name}, which `{key}` names, is not set"
            ))
            .help(format!("set {name} in the environment of the server"))
        })
}

/// A MAC key for external account binding, base64url as CAs give it.
pub(super) fn hmac_key(text: &str) -> Parsed<Vec<u8>> {
    const BASE64URL: GeneralPurpose = GeneralPurpose::new(
        &alphabet::URL_SAFE,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let wrong = |why: &str| {
        Problem::new(format!("the HMAC key {why}"))
            .help("it is what the CA gave, in base64url: letters, digits, `-` and `_`")
    };
    match BASE64URL.decode(text.trim()) {
        Ok(key) if key.is_empty() => Err(wrong("is empty")),
        Ok(key) => Ok(key),
        Err(_) => Err(wrong("is not base64url")),
    }
}
