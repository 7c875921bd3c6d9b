//! Paths as routes see them.

use std::borrow::Cow;

/// The path that others than the client take it for (RFC 3986 section 6.2.2): without needless
/// percent-encoding, `.`, `..` and empty segments. It is what routes are matched against, so that no
/// spelling leads past one.
pub fn normal(path: &[u8]) -> Cow<'_, [u8]> {
    match is_normal(path) {
        true => Cow::Borrowed(path),
        false => Cow::Owned(without_dots(&decoded(path))),
    }
}

fn is_normal(path: &[u8]) -> bool {
    let mut slash = false;
    for &byte in path {
        // A dot after a slash may be the beginning of more than a dot, too.
        if byte == b'%' || (slash && matches!(byte, b'/' | b'.')) {
            return false;
        }
        slash = byte == b'/';
    }
    true
}

/// Unreserved characters (RFC 3986 section 2.3) mean the same encoded or not.
fn decoded(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let encoded = (byte == b'%').then(|| hex(after)).flatten();
        match encoded {
            Some(plain) if plain.is_ascii_alphanumeric() || b"-._~".contains(&plain) => {
                out.push(plain);
                rest = &after[2..];
            }
            _ => out.push(byte),
        }
    }
    out
}

/// The byte that two digits behind a `%` stand for.
pub fn hex(text: &[u8]) -> Option<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let value = digit(text.first()?)? * 16 + digit(text.get(1)?)?;
    u8::try_from(value).ok()
}

/// RFC 3986 section 5.2.4, and several slashes are one.
fn without_dots(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut segments = path.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"" | b"." if !is_last => {}
            b".." => {
                let parent = out.iter().rposition(|byte| *byte == b'/');
                out.truncate(parent.unwrap_or(0));
                if is_last {
                    out.push(b'/');
                }
            }
            segment => {
                out.push(b'/');
                if segment != b"." {
                    out.extend_from_slice(segment);
                }
            }
        }
    }
    match path.first() {
        Some(b'/') => out,
        // `*`, or nothing.
        _ => path.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_the_same_path() {
        for (given, expected) in [
            ("/", "/"),
            ("", ""),
            ("*", "*"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("//a///b", "/a/b"),
            ("/a//", "/a/"),
            ("/%61dmin", "/admin"),
            ("/%7Euser", "/~user"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%zz", "/a%zz"),
            ("/a%", "/a%"),
            ("/x/../admin", "/admin"),
            ("/x/%2e%2E/admin", "/admin"),
            ("/../../admin", "/admin"),
            ("/a/./b", "/a/b"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/..", "/"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a/...", "/a/..."),
            ("/a%252e", "/a%252e"),
        ] {
            let found = normal(given.as_bytes());
            assert_eq!(std::str::from_utf8(&found).unwrap(), expected, "{given}");
            assert_eq!(normal(&found), found, "{given} twice");
        }
    }

    #[test]
    fn what_is_normal_already_is_not_copied() {
        assert!(matches!(normal(b"/a.b/c~d?"), Cow::Borrowed(_)));
    }
}
