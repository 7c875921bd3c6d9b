//! Names that a certificate or a site can have, in one canonical form, so that equality is byte
//! equality everywhere else.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// A DNS name, a wildcard or an IP address. DNS text is lower-case ASCII (internationalised names
/// as A-labels, RFC 5890), without a trailing dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    Dns(Arc<str>),
    /// `*.example.com`, held as its parent `example.com`. It covers one more label, no fewer and
    /// no more (RFC 6125 section 6.4.3).
    Wildcard(Arc<str>),
    Ip(IpAddr),
}

/// Why a text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("is empty")]
    Empty,
    #[error("is longer than 253 characters")]
    TooLong,
    #[error("has an empty or over-long label (1 to 63 characters between dots)")]
    Label,
    #[error("has the character {0:?}, which no host name can have")]
    Character(char),
    #[error(
        "has a `*` elsewhere than as its whole first label, before a name of at least one label"
    )]
    Wildcard,
    #[error("is not a valid internationalised name")]
    Idna,
    #[error("has a port or a scheme: only the host name is wanted")]
    NotAHost,
}

impl Name {
    /// Whether a certificate with this name is good for `host` (an exact name or an address).
    pub fn covers(&self, host: &Name) -> bool {
        match (self, host) {
            (Name::Wildcard(own), Name::Dns(host)) => parent(host) == Some(own),
            (a, b) => a == b,
        }
    }

    /// Whether no public CA issues for this name, so that `tls = "auto"` turns to the internal CA:
    /// special-use domains, names without a dot, and addresses that are not global.
    pub fn is_private(&self) -> bool {
        const SPECIAL_USE: [&str; 4] = ["localhost", "local", "internal", "home.arpa"];
        match self {
            Name::Dns(name) | Name::Wildcard(name) => {
                !name.contains('.')
                    || SPECIAL_USE.iter().any(|suffix| {
                        name.strip_suffix(suffix)
                            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                    })
            }
            Name::Ip(IpAddr::V4(ip)) => {
                ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified()
            }
            Name::Ip(IpAddr::V6(ip)) => {
                ip.is_loopback()
                    || ip.is_unicast_link_local()
                    || ip.is_unique_local()
                    || ip.is_unspecified()
            }
        }
    }

    pub fn is_wildcard(&self) -> bool {
        matches!(self, Name::Wildcard(_))
    }

    /// The name as a path component: `*.` becomes `_wildcard.`, `:` of an IPv6 address `_`.
    pub fn as_directory(&self) -> String {
        match self {
            Name::Dns(name) => name.to_string(),
            Name::Wildcard(parent) => format!("_wildcard.{parent}"),
            Name::Ip(ip) => ip.to_string().replace(':', "_"),
        }
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let unbracketed = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(ip) = unbracketed.parse::<IpAddr>() {
            return Ok(Name::Ip(ip.to_canonical()));
        }
        if text.contains([':', '/']) {
            return Err(NameError::NotAHost);
        }
        let (wildcard, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if rest.contains('*') {
            return Err(NameError::Wildcard);
        }
        if wildcard && rest.is_empty() {
            return Err(NameError::Wildcard);
        }
        let ascii = canonical_dns(rest)?;
        match (ascii.parse::<IpAddr>(), wildcard) {
            (Ok(_), true) => Err(NameError::Wildcard),
            // It had a dot at its end, or digits that are not ASCII.
            (Ok(ip), false) => Ok(Name::Ip(ip.to_canonical())),
            (Err(_), true) => Ok(Name::Wildcard(ascii.into())),
            (Err(_), false) => Ok(Name::Dns(ascii.into())),
        }
    }
}

/// What stands behind the first label of a host: the wildcard that covers it is held as this. An
/// empty label is none; what a client sends as a server name need not be a name.
pub fn parent(host: &str) -> Option<&str> {
    let (label, parent) = host.split_once('.')?;
    (!label.is_empty()).then_some(parent)
}

/// Lower-case A-labels without the trailing dot.
fn canonical_dns(text: &str) -> Result<String, NameError> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let ascii = if text.is_ascii() {
        text.to_ascii_lowercase()
    } else {
        idna::domain_to_ascii(text).map_err(|_| NameError::Idna)?
    };
    if ascii.is_empty() {
        return Err(NameError::Empty);
    }
    if ascii.len() > 253 {
        return Err(NameError::TooLong);
    }
    for label in ascii.split('.') {
        if label.is_empty() || label.len() > 63 {
            return Err(NameError::Label);
        }
    }
    // Underscores are not host names by the letter, but are in use and CAs of one's own issue them.
    match ascii
        .chars()
        .find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_')))
    {
        Some(c) => Err(NameError::Character(c)),
        None => Ok(ascii),
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Dns(name) => f.write_str(name),
            Name::Wildcard(parent) => write!(f, "*.{parent}"),
            Name::Ip(ip) => write!(f, "{ip}"),
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_canonical() {
        assert_eq!(name("Example.COM."), name("example.com"));
        assert_eq!(name("bücher.example").to_string(), "xn--bcher-kva.example");
        assert_eq!(name("*.Example.com").to_string(), "*.example.com");
        assert_eq!(name("[::1]"), name("::1"));
        assert_eq!(name("::ffff:192.0.2.1"), name("192.0.2.1"));
        assert_eq!(name("192.0.2.1."), name("192.0.2.1"));
        assert_eq!(name("１92.0.2.1"), name("192.0.2.1"));
    }

    #[test]
    fn what_is_not_a_name_is_refused() {
        for (text, error) in [
            ("", NameError::Empty),
            ("a..b", NameError::Label),
            ("a b", NameError::Character(' ')),
            ("www.*.com", NameError::Wildcard),
            ("*", NameError::Wildcard),
            ("*.", NameError::Wildcard),
            ("example.com:443", NameError::NotAHost),
            ("https://example.com", NameError::NotAHost),
        ] {
            assert_eq!(text.parse::<Name>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_wildcard_covers_exactly_one_label() {
        let wildcard = name("*.example.com");
        assert!(wildcard.covers(&name("a.example.com")));
        assert!(!wildcard.covers(&name("example.com")));
        assert!(!wildcard.covers(&name("a.b.example.com")));
        assert!(!wildcard.covers(&name("192.0.2.1")));
    }

    #[test]
    fn private_names() {
        for text in [
            "localhost",
            "a.localhost",
            "printer.local",
            "x.internal",
            "nas.home.arpa",
            "intranet",
            "10.0.0.1",
            "::1",
            "fd00::1",
            "*.localhost",
        ] {
            assert!(name(text).is_private(), "{text}");
        }
        for text in [
            "example.com",
            "notlocalhost.com",
            "mylocal.net",
            "8.8.8.8",
            "*.example.com",
        ] {
            assert!(!name(text).is_private(), "{text}");
        }
    }
}
