//! What is in a file, by its name, and whether that becomes smaller when it is compressed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The `Content-Type` of a file with this name.
pub fn content_type(name: &[u8]) -> String {
    let path = Path::new(OsStr::from_bytes(name));
    let media = mime_guess::from_path(path).first_or_octet_stream();
    match media.essence_str() {
        // RFC 9239: this is what it is called now.
        "application/javascript" => "text/javascript; charset=utf-8".to_owned(),
        text if text.starts_with("text/") => format!("{text}; charset=utf-8"),
        _ => media.to_string(),
    }
}

/// Whether a body of this `Content-Type` becomes much smaller. Events are not: they have to leave
/// at once, and are small.
pub fn is_compressible(content_type: &[u8]) -> bool {
    const TYPES: [&str; 20] = [
        "application/atom+xml",
        "application/graphql",
        "application/javascript",
        "application/json",
        "application/manifest+json",
        "application/rss+xml",
        "application/vnd.ms-fontobject",
        "application/wasm",
        "application/x-javascript",
        "application/x-ndjson",
        "application/x-sh",
        "application/xml",
        "application/yaml",
        "font/otf",
        "font/ttf",
        "image/bmp",
        "image/svg+xml",
        "image/vnd.microsoft.icon",
        "image/x-icon",
        "application/toml",
    ];
    let end = content_type.iter().position(|byte| *byte == b';');
    let media = content_type[..end.unwrap_or(content_type.len())].trim_ascii();
    let is = |other: &str| media.eq_ignore_ascii_case(other.as_bytes());
    let ends = |suffix: &[u8]| {
        let at = media.len().checked_sub(suffix.len());
        at.is_some_and(|at| media[at..].eq_ignore_ascii_case(suffix))
    };
    let is_text = media
        .get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"text/"));
    !is("text/event-stream")
        && (is_text || ends(b"+json") || ends(b"+xml") || TYPES.iter().any(|other| is(other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_is_in_a_file() {
        for (name, expected) in [
            ("a/index.html", "text/html; charset=utf-8"),
            ("A.CSS", "text/css; charset=utf-8"),
            ("app.js", "text/javascript; charset=utf-8"),
            ("app.mjs", "text/javascript; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.svg", "image/svg+xml"),
            ("a.wasm", "application/wasm"),
            ("a.woff2", "font/woff2"),
            ("a.webp", "image/webp"),
            ("a.tar.gz", "application/gzip"),
            ("site.webmanifest", "application/manifest+json"),
            ("README", "application/octet-stream"),
            (".well-known/x", "application/octet-stream"),
        ] {
            assert_eq!(content_type(name.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn text_becomes_smaller_and_pictures_do_not() {
        for (media, expected) in [
            ("text/html; charset=utf-8", true),
            ("TEXT/plain", true),
            ("application/json", true),
            ("application/problem+json;x=y", true),
            ("image/svg+xml", true),
            ("text/event-stream", false),
            ("application/grpc", false),
            ("application/grpc-web+proto", false),
            ("image/png", false),
            ("application/zip", false),
            ("font/woff2", false),
            ("application/octet-stream", false),
            ("", false),
        ] {
            assert_eq!(is_compressible(media.as_bytes()), expected, "{media}");
        }
    }
}
