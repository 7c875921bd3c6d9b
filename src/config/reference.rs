//! What can stand in a configuration file, for readers and for editors: both are made from the
//! tables of keys that files are read with.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::dns::read::provider_keys;
use super::keys::{DNS, DNS_PROVIDERS, Key, SECTIONS, Section, Shape, TOP};

/// What a duration looks like (`value::duration`).
const DURATION: &str = "^[0-9]+(ms|s|m|h|d)$";
const LIMIT: &str = "^(off| *[0-9]+ */ *[0-9]+(ms|s|m|h|d) *)$";
const SIZE: &str = "^(off| *[0-9]+ *(B|KiB|MiB|GiB))$";

/// A JSON schema (draft 7, which editors know) of a configuration file.
pub fn schema() -> Value {
    let definitions: Map<String, Value> = sections()
        .map(|section| (section.id.to_owned(), table_schema(section)))
        .collect();
    let mut schema = table_schema(&TOP);
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("Configuration of Perennial");
    schema["definitions"] = definitions.into();
    schema
}

/// All sections but the file itself.
fn sections() -> impl Iterator<Item = &'static Section> {
    SECTIONS.into_iter().skip(1)
}

fn table_schema(section: &Section) -> Value {
    let mut properties: Map<String, Value> = section
        .keys
        .iter()
        .map(|key| (key.name.to_owned(), key_schema(key)))
        .collect();
    if [DNS.id, DNS_PROVIDERS.id].contains(&section.id) {
        for (name, is_flag) in provider_keys() {
            let kind = if is_flag { "boolean" } else { "string" };
            properties.insert(name.to_owned(), json!({ "type": kind }));
        }
    }
    let mut schema = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    if !section.doc.is_empty() {
        schema["description"] = json!(section.doc);
    }
    schema
}

fn key_schema(key: &Key) -> Value {
    let mut schema = shape_schema(&key.shape);
    // In this draft what stands beside a reference is ignored.
    if schema.get("$ref").is_some() {
        schema = json!({ "allOf": [schema] });
    }
    schema["description"] = json!(key.doc);
    if let Some(default) = default_of(key) {
        schema["default"] = default;
    }
    schema
}

/// A default is written as in a file; TOML's strings, numbers, booleans and arrays of the kinds
/// that are used are JSON's, too.
fn default_of(key: &Key) -> Option<Value> {
    serde_json::from_str(key.default).ok()
}

fn shape_schema(shape: &Shape) -> Value {
    match shape {
        Shape::Text(_) | Shape::Path => json!({ "type": "string" }),
        Shape::Duration => json!({ "type": "string", "pattern": DURATION }),
        Shape::Limit => json!({ "type": "string", "pattern": LIMIT }),
        Shape::Size => json!({ "type": "string", "pattern": SIZE }),
        Shape::Flag => json!({ "type": "boolean" }),
        Shape::Whole(least, most) => {
            json!({ "type": "integer", "minimum": least, "maximum": most })
        }
        Shape::Words(words) => json!({ "enum": words }),
        Shape::List(element) => json!({ "type": "array", "items": shape_schema(element) }),
        Shape::Pairs => {
            json!({ "type": "object", "additionalProperties": { "type": "string" } })
        }
        Shape::Table(section) => reference_to(section),
        Shape::Tables(section) => json!({ "type": "array", "items": reference_to(section) }),
        Shape::Either(shapes) => {
            json!({ "anyOf": shapes.iter().map(shape_schema).collect::<Vec<_>>() })
        }
    }
}

fn reference_to(section: &Section) -> Value {
    json!({ "$ref": format!("#/definitions/{}", section.id) })
}

/// The reference in Markdown.
pub fn markdown() -> String {
    let mut text = String::from(HEAD);
    for section in sections() {
        // Writing to a string does not fail.
        let _ = write!(text, "\n## `{}`\n\n{}\n\n", section.header, section.doc);
        text.push_str("| key | value | default | |\n|---|---|---|---|\n");
        for key in section.keys {
            text.push_str(&row(key));
        }
    }
    text
}

const HEAD: &str = "# Configuration reference

Made by `perennial schema --markdown` from the tables that files are read with; `perennial schema` \
prints the same for editors, as a [JSON schema](configuration.schema.json) (with Taplo or Even \
Better TOML, begin a file with `#:schema ./configuration.schema.json`). \
[config/perennial.toml](../config/perennial.toml) has it all as a file with comments.

Durations are `\"250ms\"`, `\"5s\"`, `\"2m\"`, `\"12h\"`, `\"1d\"`. Relative paths are relative to the \
file. Where there is no default, a key that is left out sets nothing.
";

fn row(key: &Key) -> String {
    let default = match key.default {
        "" => String::new(),
        default => format!("`{default}`"),
    };
    let doc = key.doc.replace('|', "\\|");
    let shape = shape_words(&key.shape).replace('|', "\\|");
    format!("| `{}` | {shape} | {default} | {doc} |\n", key.name)
}

fn shape_words(shape: &Shape) -> String {
    match shape {
        Shape::Text(what) => (*what).to_owned(),
        Shape::Duration => "a duration".to_owned(),
        Shape::Limit => "a limit: `\"50/7d\"`, or `\"off\"`".to_owned(),
        Shape::Size => "a size: `\"10MiB\"`, or `\"off\"`".to_owned(),
        Shape::Path => "a path".to_owned(),
        Shape::Flag => "`true` or `false`".to_owned(),
        Shape::Whole(least, most) => format!("{least} to {most}"),
        Shape::Words(words) => {
            let quoted: Vec<_> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
            quoted.join(", ")
        }
        Shape::List(element) => format!("array: {}", shape_words(element)),
        Shape::Pairs => "a table of strings".to_owned(),
        Shape::Table(section) => format!("table: {}", link(section)),
        Shape::Tables(section) => format!("tables: {}", link(section)),
        Shape::Either(shapes) => {
            let words: Vec<_> = shapes.iter().map(shape_words).collect();
            words.join("; or ")
        }
    }
}

/// To the section's heading, by the rules of GitHub for anchors.
fn link(section: &Section) -> String {
    let anchor: String = section
        .header
        .chars()
        .filter_map(|letter| match letter {
            ' ' => Some('-'),
            letter if letter.is_ascii_alphanumeric() || letter == '_' => Some(letter),
            _ => None,
        })
        .collect();
    format!("[`{}`](#{anchor})", section.header)
}
