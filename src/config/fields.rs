//! What a site changes of the fields (headers) of requests and responses: `request_headers`,
//! `response_headers`, `hsts`, `security_headers`; and conditions on them.

use std::time::Duration;

use super::diagnostic::{Located, Problem};
use super::keys::{FIELD_RULES, HSTS};
use super::reader::{Kind, Table, Value};
use super::template::Template;
use super::value::duration_between;

/// What happens to some fields, in this order: some are removed, some set (instead of all that
/// have their name), some added, and some set where there is none yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldRules {
    pub remove: Vec<Box<str>>,
    pub set: Vec<(Box<str>, Template)>,
    pub add: Vec<(Box<str>, Template)>,
    pub default: Vec<(Box<str>, Template)>,
}

impl FieldRules {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty()
            && self.set.is_empty()
            && self.add.is_empty()
            && self.default.is_empty()
    }

    /// These rules, and then those of `next`, which have the last word.
    pub fn then(&self, next: FieldRules) -> FieldRules {
        let mut all = self.clone();
        let decided = |name: &str| {
            let set = next.set.iter().map(|(name, _)| name);
            next.remove
                .iter()
                .chain(set)
                .any(|other| other.eq_ignore_ascii_case(name))
        };
        all.set.retain(|(name, _)| !decided(name));
        all.add.retain(|(name, _)| !decided(name));
        all.default.retain(|(name, _)| !decided(name));
        all.remove.retain(|name| {
            let set = next.set.iter();
            !set.clone()
                .any(|(other, _)| other.eq_ignore_ascii_case(name))
        });
        all.remove.extend(next.remove);
        all.set.extend(next.set);
        all.add.extend(next.add);
        all.default.extend(next.default);
        all
    }
}

/// `Strict-Transport-Security` (RFC 6797).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hsts {
    /// As it is sent.
    pub value: Box<str>,
}

/// A field that a request must have, for a route to be for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldCondition {
    pub name: Box<str>,
    /// One of the field's values has to look like this; `*` stands for any text.
    pub value: Wild,
}

/// A text in which `*` stands for any text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wild {
    /// What stands between the stars; a single one without any star.
    pieces: Vec<Box<str>>,
}

impl Wild {
    pub fn new(text: &str) -> Wild {
        Wild {
            pieces: text.split('*').map(Box::from).collect(),
        }
    }

    /// Whether `text` looks like it.
    pub fn matches(&self, text: &[u8]) -> bool {
        let Some((first, rest)) = self.pieces.split_first() else {
            return false;
        };
        let Some(mut text) = text.strip_prefix(first.as_bytes()) else {
            return false;
        };
        let Some((last, middle)) = rest.split_last() else {
            return text.is_empty();
        };
        // The first place for a piece is as good as any: what follows has the more room.
        for piece in middle {
            let Some(at) = find(text, piece.as_bytes()) else {
                return false;
            };
            text = &text[at + piece.len()..];
        }
        text.ends_with(last.as_bytes())
    }

    /// How many bytes of it are written out.
    pub fn literals(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len()).sum()
    }
}

fn find(text: &[u8], piece: &[u8]) -> Option<usize> {
    match piece {
        [] => Some(0),
        piece => text.windows(piece.len()).position(|window| window == piece),
    }
}

/// Fields that say where a message ends or what is about one connection: ours to write.
const OURS: [&str; 10] = [
    "connection",
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A field's name: a token (RFC 9110 section 5.1).
pub(super) fn field_name(text: &str) -> Result<String, Problem> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    match !text.is_empty() && text.bytes().all(is_token) {
        true => Ok(text.to_owned()),
        false => Err(Problem::new(format!("{text:?} is no name of a field"))
            .help("it looks like X-Robots-Tag: letters, digits and -")),
    }
}

/// A name of a field that may be changed.
fn changed_name(text: &str) -> Result<Box<str>, Problem> {
    let name = field_name(text)?;
    match OURS.contains(&name.to_ascii_lowercase().as_str()) {
        true => Err(Problem::new(format!(
            "the field {name} is about the connection, and not to be changed"
        ))
        .help("it is written anew for each connection; leave it out")),
        false => Ok(name.into()),
    }
}

/// A name of a field that may be without, or several times.
pub(super) fn spare_name(text: &str) -> Result<Box<str>, Problem> {
    let name = changed_name(text)?;
    match name.eq_ignore_ascii_case("host") {
        true => Err(Problem::new("a request has one Host, no more and no less")
            .help("use set = { Host = \"...\" } to ask for another")),
        false => Ok(name),
    }
}

/// A field's value.
fn field_value(text: &str) -> Result<Template, Problem> {
    match text
        .bytes()
        .all(|byte| byte == b'\t' || !byte.is_ascii_control())
    {
        true => Template::parse(text.trim()),
        false => Err(Problem::new(format!(
            "{text:?} is no value of a field: it has a control character"
        ))),
    }
}

const NAMES: Kind = Kind {
    what: "an array of field names",
    example: "[\"Server\"]",
};
const DURATION: Kind = Kind {
    what: "a duration in quotes, or a table",
    example: "\"365d\"",
};

/// `request_headers` or `response_headers` of a site or a route.
pub(super) fn rules(table: &Table<'_>, key: &'static str) -> FieldRules {
    let table = table.get(key).and_then(|value| value.table(&FIELD_RULES));
    let Some(table) = table else {
        return FieldRules::default();
    };
    let pairs = |key, name: fn(&str) -> Result<Box<str>, Problem>| {
        let pairs = table
            .get(key)
            .and_then(|value| value.pairs(name, field_value));
        let pairs = pairs.unwrap_or_default().into_iter();
        pairs.map(|(name, value)| (name, value.value)).collect()
    };
    let remove = table
        .get("remove")
        .and_then(|value| value.list(NAMES, spare_name));
    let remove = remove.map(|list| list.values).unwrap_or_default();
    FieldRules {
        remove: remove.into_iter().map(|name| name.value).collect(),
        set: pairs("set", changed_name),
        add: pairs("add", spare_name),
        default: pairs("default", changed_name),
    }
}

/// `headers` of a route.
pub(super) fn conditions(value: Value<'_>) -> Vec<FieldCondition> {
    let name = |text: &str| field_name(text).map(String::into_boxed_str);
    let value = value.pairs(name, |text| Ok(Wild::new(text)));
    let pairs = value.unwrap_or_default().into_iter();
    pairs
        .map(|(name, value)| FieldCondition {
            name,
            value: value.value,
        })
        .collect()
}

/// `hsts`: how long, or a table that says more.
pub(super) fn hsts(value: Value<'_>) -> Option<Located<Hsts>> {
    let at = value.at;
    let max_age =
        |value: Value<'_>| value.parse(DURATION, |text| duration_between(text, "0s", "3650d"));
    let (max_age, subdomains, preload) = match value.is_table() {
        false => (max_age(value)?.value, false, false),
        true => {
            let table = value.table(&HSTS)?;
            let flag = |key| table.get(key).and_then(Value::boolean).unwrap_or_default();
            let age = max_age(table.require("max_age", DURATION.example)?)?;
            (age.value, flag("include_subdomains"), flag("preload"))
        }
    };
    let value = Hsts {
        value: hsts_value(max_age, subdomains, preload).into(),
    };
    Some(Located { value, at })
}

fn hsts_value(max_age: Duration, subdomains: bool, preload: bool) -> String {
    let mut value = format!("max-age={}", max_age.as_secs());
    if subdomains {
        value.push_str("; includeSubDomains");
    }
    if preload {
        value.push_str("; preload");
    }
    value
}

/// What `security_headers = true` sets where the upstream has said nothing.
pub(super) fn security() -> FieldRules {
    const FIELDS: [(&str, &str); 3] = [
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "SAMEORIGIN"),
        ("Referrer-Policy", "strict-origin-when-cross-origin"),
    ];
    let default = FIELDS.map(|(name, value)| (Box::from(name), Template::of_text(value)));
    FieldRules {
        default: default.into(),
        ..FieldRules::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("*.php", "x.php", true),
            ("*.php", ".php", true),
            ("*.php", "x.php5", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("*json*", "application/json; x", true),
        ] {
            assert_eq!(
                Wild::new(pattern).matches(text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn later_rules_have_the_last_word() {
        let text = Template::of_text;
        let site = FieldRules {
            remove: vec!["Server".into(), "X-Gone".into()],
            set: vec![("X-A".into(), text("site")), ("X-B".into(), text("site"))],
            add: vec![("X-C".into(), text("site"))],
            default: Vec::new(),
        };
        let route = FieldRules {
            remove: vec!["x-b".into()],
            set: vec![
                ("server".into(), text("route")),
                ("x-a".into(), text("route")),
            ],
            ..FieldRules::default()
        };
        let all = site.then(route);
        assert_eq!(all.remove, ["X-Gone".into(), Box::from("x-b")]);
        assert_eq!(
            all.set,
            [
                ("server".into(), text("route")),
                (Box::from("x-a"), text("route"))
            ]
        );
        assert_eq!(all.add.len(), 1);
    }

    #[test]
    fn hsts_is_written_as_the_rfc_has_it() {
        let day = Duration::from_secs(86_400);
        assert_eq!(hsts_value(day, false, false), "max-age=86400");
        assert_eq!(
            hsts_value(day, true, true),
            "max-age=86400; includeSubDomains; preload"
        );
    }
}
