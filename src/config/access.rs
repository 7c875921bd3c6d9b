//! Who may ask, how much and how often: `allow`, `deny`, `max_body`, `rate_limit`, `basic_auth` and
//! `forward_auth` of a site or a route.

use std::path::{Path, PathBuf};

use super::diagnostic::{Located, Problem};
use super::forward_auth::{ForwardAuth, Read, forward_auth};
use super::ip_prefix::IpPrefix;
use super::keys::{BASIC_AUTH, RATE_LIMIT};
use super::limits::{Limit, limit};
use super::reader::{Kind, Table, Value};
use super::toml_file::{PREFIXES, Reader};
use super::value::{file_path, ip_prefix};

/// What a request has to fulfil, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub deny: Vec<IpPrefix>,
    /// Nobody else, unless it is empty.
    pub allow: Vec<IpPrefix>,
    pub rate_limit: Option<RateLimit>,
    pub basic_auth: Option<BasicAuth>,
    pub forward_auth: Option<ForwardAuth>,
    /// In bytes.
    pub max_body: Option<u64>,
}

/// `rate_limit`: so many requests within so long, of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    pub limit: Limit,
    pub by: RateKey,
}

/// Whose requests are counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateKey {
    /// Those of an IPv4 address, or of an IPv6 network of 64 bits.
    Client,
    /// All.
    Everybody,
    /// Those with the same value of this field.
    Field(Box<str>),
}

/// `basic_auth` (RFC 7617).
#[derive(Clone, PartialEq, Eq)]
pub struct BasicAuth {
    pub realm: Box<str>,
    pub users: Vec<(Box<str>, PasswordHash)>,
}

impl std::fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BasicAuth")
            .field("realm", &self.realm)
            .finish_non_exhaustive()
    }
}

/// The hash of a password, in a form that is known. Secret: it can be guessed against.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordHash {
    /// `$argon2id$v=19$...`, and the older argon2i and argon2d.
    Argon2(Box<str>),
    /// `$2b$...`, `$2y$...`
    Bcrypt(Box<str>),
}

/// As it is written; what is not, is the site's.
#[derive(Default)]
pub(super) struct AccessDraft {
    deny: Option<Vec<IpPrefix>>,
    allow: Option<Vec<IpPrefix>>,
    rate_limit: Option<Option<RateLimit>>,
    basic_auth: Option<Option<BasicAuth>>,
    forward_auth: Option<Read>,
    max_body: Option<Option<u64>>,
}

impl AccessDraft {
    /// The bundle that `forward_auth` is trusted by, and where it is named.
    pub(super) fn auth_ca(&self) -> Option<&Located<PathBuf>> {
        self.forward_auth.as_ref()?.ca.as_ref()
    }

    /// What is written here, over what the site has.
    pub(super) fn over(self, site: &Access) -> Access {
        Access {
            deny: self.deny.unwrap_or_else(|| site.deny.clone()),
            allow: self.allow.unwrap_or_else(|| site.allow.clone()),
            rate_limit: self.rate_limit.unwrap_or_else(|| site.rate_limit.clone()),
            basic_auth: self.basic_auth.unwrap_or_else(|| site.basic_auth.clone()),
            forward_auth: self
                .forward_auth
                .map_or_else(|| site.forward_auth.clone(), |read| read.auth),
            max_body: self.max_body.unwrap_or(site.max_body),
        }
    }
}

const RATE: Kind = Kind {
    what: "a limit in quotes, or a table",
    example: "\"100/1m\"",
};
const BY: Kind = Kind {
    what: "\"client\", \"everybody\" or \"header.NAME\"",
    example: "\"client\"",
};
const USERS: Kind = Kind {
    what: "the path of a file of users in quotes, or a table",
    example: "\"/etc/perennial/users\"",
};
const REALM: Kind = Kind {
    what: "a text in quotes",
    example: "\"staff only\"",
};
const SIZE: Kind = Kind {
    what: "a size in quotes",
    example: "\"10MiB\"",
};

impl<'a> Reader<'a> {
    pub(super) fn access(&self, table: &Table<'a>) -> AccessDraft {
        let prefixes = |key| {
            let list = table.get(key)?.list(PREFIXES, ip_prefix)?;
            Some(list.values.into_iter().map(|one| one.value).collect())
        };
        let max_body = table.get("max_body").and_then(|v| v.parse(SIZE, size));
        AccessDraft {
            deny: prefixes("deny"),
            allow: prefixes("allow"),
            rate_limit: table.get("rate_limit").and_then(rate_limit),
            basic_auth: table.get("basic_auth").and_then(|v| self.basic_auth(v)),
            forward_auth: table
                .get("forward_auth")
                .and_then(|v| forward_auth(v, self.base)),
            max_body: max_body.map(|size| size.value),
        }
    }

    /// The outer `None`: it could not be read.
    fn basic_auth(&self, value: Value<'a>) -> Option<Option<BasicAuth>> {
        const REALM_DEFAULT: &str = "restricted";
        let (file, realm) = match value.is_table() {
            false => (value, None),
            true => {
                let table = value.table(&BASIC_AUTH)?;
                let realm = table.get("realm").and_then(|v| v.parse(REALM, realm));
                (table.require("users_file", USERS.example)?, realm)
            }
        };
        let path = file.parse(USERS, |text| match text {
            "off" => Ok(None),
            text => file_path(text, self.base).map(Some),
        })?;
        let Located {
            value: Some(path),
            at,
        } = path
        else {
            return Some(None);
        };
        let users = self.report.keep(at, self.users(&path))?;
        Some(Some(BasicAuth {
            realm: realm.map_or(REALM_DEFAULT.into(), |realm| realm.value),
            users,
        }))
    }

    /// `NAME:HASH`, a line each; `#` begins a comment.
    fn users(&self, path: &Path) -> Result<Vec<(Box<str>, PasswordHash)>, Problem> {
        let text = (self.environment.read_text)(path).map_err(|error| {
            Problem::new(format!("cannot read {}: {error}", path.display())).help(
                "it has a line NAME:HASH for each user; `perennial hash-password` makes hashes",
            )
        })?;
        let lines = text.lines().enumerate();
        let lines = lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let mut users: Vec<(Box<str>, PasswordHash)> = Vec::new();
        for (number, line) in lines {
            let wrong = |why: &str| {
                let place = format!("{}:{}", path.display(), number + 1);
                Problem::new(format!("{place}: {why}")).help(
                    "write NAME:HASH, with a hash by `perennial hash-password` or `htpasswd -B`",
                )
            };
            let (name, hash) = line
                .trim()
                .split_once(':')
                .ok_or_else(|| wrong("it has no `:`"))?;
            let hash = PasswordHash::parse(hash).ok_or_else(|| {
                wrong(&format!(
                    "the hash of {name:?} is neither argon2 nor bcrypt"
                ))
            })?;
            if users.iter().any(|(known, _)| **known == *name) {
                return Err(wrong(&format!("the user {name:?} is there twice")));
            }
            users.push((name.into(), hash));
        }
        match users.is_empty() {
            true => Err(Problem::new(format!("{} has no user", path.display()))
                .help("add a line NAME:HASH; `perennial hash-password` makes hashes")),
            false => Ok(users),
        }
    }
}

impl PasswordHash {
    fn parse(text: &str) -> Option<PasswordHash> {
        if argon2::PasswordHash::new(text).is_ok() && text.starts_with("$argon2") {
            return Some(PasswordHash::Argon2(text.into()));
        }
        let is_bcrypt = text.parse::<bcrypt::HashParts>().is_ok();
        is_bcrypt.then(|| PasswordHash::Bcrypt(text.into()))
    }
}

fn rate_limit(value: Value<'_>) -> Option<Option<RateLimit>> {
    let table = value.is_table().then(|| value.table(&RATE_LIMIT));
    let (limit_value, by) = match table {
        None => (value, None),
        Some(table) => {
            let table = table?;
            let by = table.get("by").and_then(|v| v.parse(BY, rate_key));
            (table.require("limit", RATE.example)?, by)
        }
    };
    let limit = limit_value.parse(RATE, limit)?.value;
    let by = by.map_or(RateKey::Client, |by| by.value);
    Some(limit.map(|limit| RateLimit { limit, by }))
}

fn rate_key(text: &str) -> Result<RateKey, Problem> {
    match (text, text.strip_prefix("header.")) {
        ("client", _) => Ok(RateKey::Client),
        ("everybody", _) => Ok(RateKey::Everybody),
        (_, Some(name)) => super::fields::field_name(name).map(|name| RateKey::Field(name.into())),
        _ => Err(
            Problem::new(format!("{text:?} is nothing to count requests by"))
                .help("write \"client\", \"everybody\" or \"header.NAME\""),
        ),
    }
}

/// Between quotes it may not have what would end them (RFC 9110 section 5.6.4).
fn realm(text: &str) -> Result<Box<str>, Problem> {
    let plain = |c: char| c == ' ' || (c.is_ascii_graphic() && !matches!(c, '"' | '\\'));
    match text.chars().all(plain) {
        true => Ok(text.into()),
        false => Err(Problem::new(format!("{text:?} is no realm"))
            .help("use letters, digits and spaces, without quotes")),
    }
}

/// `"64KiB"`, or `"off"`.
pub(super) fn size(text: &str) -> Result<Option<u64>, Problem> {
    const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("B", 0)];
    if text == "off" {
        return Ok(None);
    }
    let unit = UNITS
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
    let bytes = unit.and_then(|(number, shift)| {
        let number: u64 = number.trim().parse().ok()?;
        number.checked_mul(1 << shift)
    });
    bytes.map(Some).ok_or_else(|| {
        Problem::new(format!("{text:?} is not a size")).help(
            "a size is a whole number and one of B, KiB, MiB, GiB, such as \"10MiB\", or \"off\"",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0B", Some(0)),
            ("64KiB", Some(65_536)),
            ("10 MiB", Some(10 << 20)),
            ("2GiB", Some(2 << 30)),
            ("off", None),
        ] {
            assert_eq!(size(text).unwrap(), expected, "{text}");
        }
        for text in ["", "10", "10MB", "-1B", "1.5MiB", "99999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hashes_that_are_known() {
        let bcrypt = bcrypt::hash("a", 4).unwrap();
        assert!(matches!(
            PasswordHash::parse(&bcrypt),
            Some(PasswordHash::Bcrypt(_))
        ));
        let htpasswd = bcrypt.replacen("$2b$", "$2y$", 1);
        assert!(matches!(
            PasswordHash::parse(&htpasswd),
            Some(PasswordHash::Bcrypt(_))
        ));
        let argon2 = "$argon2id$v=19$m=16,t=2,p=1$c29tZXNhbHQ$o2/4TbHr8uNYYYkWKVv1Xw";
        assert!(matches!(
            PasswordHash::parse(argon2),
            Some(PasswordHash::Argon2(_))
        ));
        for text in ["", "secret", "$apr1$x$y", "{SHA}x", "$5$x$y"] {
            assert!(PasswordHash::parse(text).is_none(), "{text}");
        }
    }
}
