//! A line of the access log in the forms that the rest of the log has. What writes the others is made
//! for any event; this one is written for each request.

use std::io::Write;

use time::OffsetDateTime;

use super::second::Second;
use crate::clock;

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Human,
    Json,
}

/// A value of a field.
#[derive(Clone, Copy, Debug)]
pub enum Value<'v> {
    /// Whatever a client or an upstream has sent: escaped.
    Text(&'v [u8]),
    /// Made by us, of characters that need no escape; for people without quotes.
    Word(&'v str),
    Number(u64),
    /// Microseconds, written as milliseconds.
    Micros(u64),
}

/// Adds the line of an event of this target, with the time and the level INFO.
pub fn write(out: &mut Vec<u8>, format: Format, target: &str, fields: &[(&str, Value<'_>)]) {
    match format {
        Format::Human => {
            write_time(out);
            out.extend_from_slice(b"  INFO ");
            out.extend_from_slice(target.as_bytes());
            out.push(b':');
            write_fields(out, fields);
        }
        Format::Json => {
            out.extend_from_slice(b"{\"timestamp\":\"");
            write_time(out);
            out.extend_from_slice(b"\",\"level\":\"INFO\"");
            for (name, value) in fields {
                out.extend_from_slice(b",\"");
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(b"\":");
                write_json(out, value);
            }
            out.extend_from_slice(b",\"target\":\"");
            out.extend_from_slice(target.as_bytes());
            out.extend_from_slice(b"\"}");
        }
    }
    out.push(b'\n');
}

/// Adds the fields alone, for people, each with a space before it.
pub fn write_fields(out: &mut Vec<u8>, fields: &[(&str, Value<'_>)]) {
    for (name, value) in fields {
        out.push(b' ');
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        write_human(out, value);
    }
}

fn write_human(out: &mut Vec<u8>, value: &Value<'_>) {
    match value {
        Value::Text(text) if is_plain(text) => write_quoted(out, text),
        // A vector takes everything, here and below.
        Value::Text(text) => drop(write!(out, "{:?}", String::from_utf8_lossy(text))),
        Value::Word(word) => out.extend_from_slice(word.as_bytes()),
        Value::Number(number) => write_number(out, *number),
        Value::Micros(micros) => write_millis(out, *micros),
    }
}

fn write_json(out: &mut Vec<u8>, value: &Value<'_>) {
    match value {
        Value::Text(text) if is_plain(text) => write_quoted(out, text),
        Value::Text(text) => drop(serde_json::to_writer(out, &String::from_utf8_lossy(text))),
        Value::Word(word) => write_quoted(out, word.as_bytes()),
        Value::Number(number) => write_number(out, *number),
        Value::Micros(micros) => write_millis(out, *micros),
    }
}

fn write_quoted(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}

/// Whether it means itself between quotes, in both forms.
fn is_plain(text: &[u8]) -> bool {
    let odd = |byte: u8| !(b' '..=b'~').contains(&byte) | (byte == b'"') | (byte == b'\\');
    !text.iter().fold(false, |found, byte| found | odd(*byte))
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    let _ = write!(out, "{number}");
}

fn write_millis(out: &mut Vec<u8>, micros: u64) {
    let _ = write!(out, "{}.{:03}", micros / 1000, micros % 1000);
}

/// RFC 3339 with microseconds. All but these are the same for a whole second.
fn write_time(out: &mut Vec<u8>) {
    thread_local!(static SECOND: Second = const { Second::new() });
    let now = clock::now();
    SECOND.with(|second| second.write(out, now, to_the_second));
    let _ = write!(out, ".{:06}Z", now.microsecond());
}

fn to_the_second(now: OffsetDateTime) -> String {
    let (date, (hour, minute, second)) = (now.date(), now.to_hms());
    format!("{date}T{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: Format, fields: &[(&str, Value<'_>)]) -> String {
        let mut out = Vec::new();
        write(&mut out, format, "a::b", fields);
        String::from_utf8(out).unwrap()
    }

    const FIELDS: [(&str, Value<'_>); 6] = [
        ("client", Value::Word("192.0.2.1")),
        ("path", Value::Text(b"/a b")),
        ("status", Value::Number(200)),
        ("duration_ms", Value::Micros(12_034)),
        ("forged", Value::Text(b"\"\\\n2026 INFO \x1b[2J")),
        ("broken", Value::Text(b"\xff\xc3\xa4")),
    ];

    #[test]
    fn people_read_it_like_the_others() {
        let line = line(Format::Human, &FIELDS);
        let (time, rest) = line.split_once("  INFO a::b: ").unwrap();
        assert!(
            OffsetDateTime::parse(time, &time::format_description::well_known::Rfc3339).is_ok()
        );
        assert_eq!(time.len(), "2026-11-25T23:19:07.725966Z".len());
        assert_eq!(
            rest,
            "client=192.0.2.1 path=\"/a b\" status=200 duration_ms=12.034 \
             forged=\"\\\"\\\\\\n2026 INFO \\u{1b}[2J\" broken=\"\u{fffd}ä\"\n"
        );
    }

    #[test]
    fn json_says_what_was_given() {
        let line = line(Format::Json, &FIELDS);
        assert_eq!(line.matches('\n').count(), 1);
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["level"], "INFO");
        assert_eq!(json["target"], "a::b");
        assert_eq!(json["client"], "192.0.2.1");
        assert_eq!(json["status"], 200);
        assert_eq!(json["duration_ms"], 12.034);
        assert_eq!(json["forged"], "\"\\\n2026 INFO \x1b[2J");
        assert_eq!(json["broken"], "\u{fffd}ä");
    }
}
