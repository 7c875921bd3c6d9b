//! What is in a directory, as a page for people or as JSON for programs. Names are what somebody has
//! called a file: none of them is markup, and none of them is a path.

use std::fmt::Write;

use http::StatusCode;
use rustix::fs::Stat;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Question;
use super::lookup::modified;
use crate::message::{Known, RequestHead};
use crate::proxy::respond::Answer;

/// More than that nobody reads, and it would be megabytes.
const MAX_ENTRIES: usize = 10_000;

/// What is served of a directory.
pub struct Listing {
    /// Below the root.
    name: Vec<u8>,
    entries: Vec<Entry>,
}

struct Entry {
    name: Vec<u8>,
    is_directory: bool,
    size: u64,
    modified: OffsetDateTime,
}

/// One of them, for programs.
#[derive(Serialize)]
struct Row<'e> {
    name: std::borrow::Cow<'e, str>,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    modified: String,
}

/// Whether a client prefers JSON: it asks for that, and not for a page.
pub fn wants_json(request: &RequestHead) -> bool {
    let takes = |media: &[u8]| {
        let mut values = request.fields.all(Known::Accept);
        values.any(|value| {
            let mut parts = value.windows(media.len());
            parts.any(|part| part.eq_ignore_ascii_case(media))
        })
    };
    takes(b"application/json") && !takes(b"text/html")
}

impl Listing {
    pub fn of(name: &[u8]) -> Listing {
        Listing {
            name: name.to_vec(),
            entries: Vec::new(),
        }
    }

    pub fn is_full(&self) -> bool {
        self.entries.len() >= MAX_ENTRIES
    }

    pub fn add_file(&mut self, name: &[u8], stat: &Stat) {
        self.add(name, stat, false);
    }

    pub fn add_directory(&mut self, name: &[u8], stat: &Stat) {
        self.add(name, stat, true);
    }

    fn add(&mut self, name: &[u8], stat: &Stat, is_directory: bool) {
        self.entries.push(Entry {
            name: name.to_vec(),
            is_directory,
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: modified(stat),
        });
    }

    /// Directories first, by name.
    pub fn answer(mut self, question: &Question) -> Answer {
        self.entries
            .sort_by(|a, b| (!a.is_directory, &a.name).cmp(&(!b.is_directory, &b.name)));
        let (body, media): (String, &[u8]) = match question.wants_json {
            true => (self.json(), b"application/json"),
            false => (self.html(), b"text/html; charset=utf-8"),
        };
        let mut answer = Answer::respond(StatusCode::OK, body.into());
        let fields = &mut answer.head.fields;
        fields.set(b"Content-Type", media);
        fields.push(b"Vary", b"Accept");
        fields.push(b"Cache-Control", b"no-cache");
        if question.is_head {
            answer.body = bytes::Bytes::new();
        }
        answer
    }

    fn json(&self) -> String {
        let rows: Vec<Row<'_>> = self.entries.iter().map(Entry::row).collect();
        // Texts and numbers are JSON.
        serde_json::to_string(&rows).unwrap_or_default()
    }

    fn html(&self) -> String {
        let title = escaped(&format!("/{}", String::from_utf8_lossy(&self.name)));
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\">\
             <title>{title}</title><style>body{{font:1rem/1.5 system-ui,sans-serif;margin:2rem}}\
             td{{padding-right:2rem}}td+td{{text-align:right}}</style></head>\n\
             <body><h1>{title}</h1><table>\n"
        );
        if !self.name.is_empty() {
            page.push_str("<tr><td><a href=\"../\">../</a></td></tr>\n");
        }
        for entry in &self.entries {
            entry.write_html(&mut page);
        }
        page.push_str("</table>");
        if self.is_full() {
            // A string takes everything.
            let _ = write!(page, "<p>The first {MAX_ENTRIES} that were found.</p>");
        }
        page.push_str("</body></html>\n");
        page
    }
}

impl Entry {
    fn row(&self) -> Row<'_> {
        Row {
            name: String::from_utf8_lossy(&self.name),
            r#type: if self.is_directory {
                "directory"
            } else {
                "file"
            },
            size: (!self.is_directory).then_some(self.size),
            modified: self.time(),
        }
    }

    fn time(&self) -> String {
        let time = self.modified.truncate_to_second();
        time.format(&Rfc3339).unwrap_or_default()
    }

    fn write_html(&self, page: &mut String) {
        let slash = if self.is_directory { "/" } else { "" };
        let size = match self.is_directory {
            true => String::new(),
            false => self.size.to_string(),
        };
        let name = escaped(&String::from_utf8_lossy(&self.name));
        // A string takes everything. A name with a colon is no scheme behind `./`.
        let _ = writeln!(
            page,
            "<tr><td><a href=\"./{}{slash}\">{name}{slash}</a></td><td>{size}</td><td>{}</td></tr>",
            encoded(&self.name),
            self.time()
        );
    }
}

/// As text in HTML, or in an attribute.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            char => out.push(char),
        }
    }
    out
}

/// As one segment of a path.
fn encoded(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for &byte in name {
        match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            true => out.push(char::from(byte)),
            // A string takes everything.
            false => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_neither_markup_nor_paths() {
        assert_eq!(
            escaped("<a href='x'>&\""),
            "&lt;a href=&#39;x&#39;&gt;&amp;&quot;"
        );
        assert_eq!(encoded(b"a b:c?#%<\xff"), "a%20b%3Ac%3F%23%25%3C%FF");
    }
}
