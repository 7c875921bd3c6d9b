//! The reference and the schema, against the reader and what the repository ships.

use serde_json::Value;

use super::*;
use crate::config::keys::{SECTIONS, Section, Shape};
use crate::config::reference;

#[test]
fn the_written_reference_is_up_to_date() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = format!("{:#}\n", reference::schema());
    for (file, expected) in [
        ("docs/configuration.md", reference::markdown()),
        ("docs/configuration.schema.json", schema),
    ] {
        let found = std::fs::read_to_string(manifest.join(file)).unwrap_or_default();
        assert!(found == expected, "{file} is out of date: make reference");
    }
}

/// A default that is written out changes nothing.
#[test]
fn the_reference_says_the_truth_about_defaults() {
    let mut seen = 0;
    for section in SECTIONS {
        for key in section.keys.iter().filter(|key| !key.default.is_empty()) {
            let without = format!("{:?}", settled(&setting(section, "")));
            let line = format!("{} = {}", key.name, key.default);
            let with = format!("{:?}", settled(&setting(section, &line)));
            assert_eq!(without, with, "{}: {line}", section.header);
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen}");
}

/// A file that has `line` in a section of this kind, which is there in any case.
fn setting(section: &Section, line: &str) -> String {
    const SITE: &str = "[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"https://u.test:1\"]\n";
    const ROUTE: &str = "[[sites.routes]]\npath = \"/\"\nupstreams = [\"https://u.test:1\"]\n";
    const ON_DEMAND: &str = "[[sites]]\nhosts = [\"*\"]\nupstreams = [\"1\"]\non_demand = true\n\
                             [acme.on_demand]\nallow = [\"a.test\"]\n";
    let header = section.header;
    match section.id {
        "configuration" | "server" | "tls" | "access_log" => format!("{header}\n{line}\n{SITE}"),
        "certificates" => {
            let file = "[[certificates.files]]\ncertificate = \"a.pem\"";
            format!("{header}\n{line}\n{file}\n{SITE}")
        }
        "acme" | "acme_limits" => format!("{header}\n{line}\n{SITE}"),
        "acme_fallback" => {
            format!("{header}\n{line}\ndirectory = \"https://ca.test/dir\"\n{SITE}")
        }
        "acme_dns" => {
            format!("{header}\nprovider = \"exec\"\nprogram = \"/bin/true\"\n{line}\n{SITE}")
        }
        "acme_dns_providers" => format!(
            "{header}\ndomains = [\"a.test\"]\nprovider = \"exec\"\nprogram = \"/bin/true\"\n{line}\n{SITE}"
        ),
        "on_demand" => format!("{ON_DEMAND}{line}\n"),
        "on_demand_budgets" => format!("{ON_DEMAND}{header}\n{line}\n"),
        "site" => format!("{SITE}{line}\n"),
        "route" => format!("{SITE}{ROUTE}{line}\n"),
        "upstream" => {
            let more = if line.is_empty() { "" } else { ", " };
            let upstream = format!("{{ to = \"1\"{more}{line} }}");
            format!("[[sites]]\nhosts = [\"a.test\"]\nupstreams = [{upstream}]\n")
        }
        "pending" => {
            let upstream = "{ to = \"1\", max_connections = 1 }";
            let site = format!("[[sites]]\nhosts = [\"a.test\"]\nupstreams = [{upstream}]\n");
            format!("{site}{header}\n{line}\n")
        }
        "load_balancing" | "health_check" | "ejection" | "retries" | "timeouts" => {
            format!("{SITE}{header}\n{line}\n")
        }
        "rate_limit" => format!("{SITE}{header}\nlimit = \"1/1s\"\n{line}\n"),
        "basic_auth" => format!("{SITE}{header}\nusers_file = \"alice.users\"\n{line}\n"),
        "forward_auth" => format!("{SITE}{header}\nurl = \"http://a.test\"\n{line}\n"),
        "hsts" => format!("{SITE}{header}\nmax_age = \"1d\"\n{line}\n"),
        "client_auth" => format!("{SITE}{header}\nca = \"ca.pem\"\n{line}\n"),
        "upstream_tls" => format!("{SITE}{header}\n{line}\n"),
        "route_upstream_tls" => format!("{SITE}{ROUTE}{header}\n{line}\n"),
        other => panic!("say here how {other} is written"),
    }
}

/// What a configuration means, without where it was read.
fn settled(text: &str) -> Config {
    let mut config = good(text);
    config.file_references.clear();
    config.ca_references = CaReferences::default();
    config
}

fn validator() -> jsonschema::Validator {
    jsonschema::draft7::new(&reference::schema()).unwrap()
}

fn as_json(text: &str) -> Value {
    toml::from_str(text).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

#[test]
fn the_schema_accepts_what_is_accepted() {
    let validator = validator();
    let all: String = include_str!("../../../config/perennial.toml")
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let examples = files_in("examples", "toml").into_iter();
    let texts = examples.map(|file| std::fs::read_to_string(file).unwrap());
    for text in texts.chain([all]) {
        if let Err(error) = validator.validate(&as_json(&text)) {
            panic!("{text}\n{error} at {}", error.instance_path());
        }
    }
}

/// Unknown keys and wrong types; what else can be wrong, a schema does not know.
#[test]
fn the_schema_refuses_what_is_refused() {
    let validator = validator();
    let mut seen = 0;
    for file in files_in("tests/configs/broken", "toml") {
        let text = std::fs::read_to_string(&file).unwrap();
        let expected = text.lines().next().unwrap();
        // Which keys a DNS provider has depends on its name.
        if expected.contains("[acme.dns]") || expected.contains("invalid TOML") {
            continue;
        }
        if expected.contains("unknown key") || expected.contains("must be ") {
            assert!(!validator.is_valid(&as_json(&text)), "{}", file.display());
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen}");
}

/// A key whose words the reader does not know would be a promise that it does not keep.
#[test]
fn every_word_is_known_to_the_reader() {
    for section in SECTIONS {
        for key in section.keys {
            let Shape::Words(words) = key.shape else {
                continue;
            };
            for word in words {
                let line = format!("{} = \"{word}\"", key.name);
                let found = parse(&setting(section, &line));
                let unknown =
                    |found: &Diagnostics| found.to_string().contains(&format!("\"{word}\" is no"));
                assert!(
                    !found.is_err_and(|found| unknown(&found)),
                    "{}: {line}",
                    section.header
                );
            }
        }
    }
}

#[test]
fn the_default_file_shows_every_key() {
    let text = include_str!("../../../config/perennial.toml");
    for section in SECTIONS {
        for key in section.keys {
            let name = key.name;
            let shown = [
                format!("{name} = "),
                format!(".{name}]"),
                format!("[{name}]"),
            ];
            assert!(
                shown.iter().any(|form| text.contains(form)),
                "{name} of {} is not in config/perennial.toml",
                section.header
            );
        }
    }
}
