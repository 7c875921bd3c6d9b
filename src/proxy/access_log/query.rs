//! Queries without what gives access to something.

use std::borrow::Cow;

use crate::proxy::path::hex;

const REDACTED: &[u8] = b"REDACTED";

/// The query of a target as it is logged, if it is.
pub fn shown<'t>(target: &'t [u8], wanted: bool, names: &[Box<str>]) -> Option<Cow<'t, [u8]>> {
    let at = target.iter().position(|byte| *byte == b'?')?;
    wanted.then(|| redacted(&target[at + 1..], names))
}

/// A URL whose query is logged as that of a request is, and without a fragment.
pub fn of_url<'u>(url: &'u [u8], wanted: bool, names: &[Box<str>]) -> Cow<'u, [u8]> {
    let end = url.iter().position(|byte| *byte == b'#');
    let url = &url[..end.unwrap_or(url.len())];
    let Some(at) = url.iter().position(|byte| *byte == b'?') else {
        return Cow::Borrowed(url);
    };
    match shown(url, wanted, names) {
        None => Cow::Borrowed(&url[..at]),
        Some(Cow::Borrowed(_)) => Cow::Borrowed(url),
        Some(Cow::Owned(query)) => Cow::Owned([&url[..=at], &query[..]].concat()),
    }
}

fn redacted<'q>(query: &'q [u8], names: &[Box<str>]) -> Cow<'q, [u8]> {
    let separator = |byte: &u8| matches!(byte, b'&' | b';');
    let is_secret = |pair: &[u8]| {
        let end = pair.iter().position(|byte| *byte == b'=');
        end.is_some_and(|end| names_secret(&pair[..end], names))
    };
    if !query.split(separator).any(is_secret) {
        return Cow::Borrowed(query);
    }
    let mut out = Vec::with_capacity(query.len());
    for pair in query.split_inclusive(separator) {
        let (pair, end) = match pair.split_last() {
            Some((last, before)) if separator(last) => (before, Some(*last)),
            _ => (pair, None),
        };
        match pair.iter().position(|byte| *byte == b'=') {
            Some(at) if names_secret(&pair[..at], names) => {
                out.extend_from_slice(&pair[..=at]);
                out.extend_from_slice(REDACTED);
            }
            _ => out.extend_from_slice(pair),
        }
        out.extend(end);
    }
    Cow::Owned(out)
}

/// In any case, and however it is encoded; of `a[token]` the last part counts, too.
fn names_secret(name: &[u8], names: &[Box<str>]) -> bool {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte == b'%').then(|| hex(after)).flatten() {
            Some(encoded) => {
                plain.push(encoded);
                rest = &after[2..];
            }
            None => plain.push(byte),
        }
    }
    let inner = plain.strip_suffix(b"]").unwrap_or(&plain);
    let inner = inner.rsplit(|byte| matches!(byte, b'[' | b'.')).next();
    let is = |text: &[u8]| {
        let mut names = names.iter();
        names.any(|name| name.as_bytes().eq_ignore_ascii_case(text))
    };
    is(&plain) || inner.is_some_and(is)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_left_out_however_they_are_written() {
        let names = ["token".into(), "access_token".into()];
        for (query, expected) in [
            ("", ""),
            ("a=b&c", "a=b&c"),
            ("token=x", "token=REDACTED"),
            ("a=b&Token=x=y&c=d", "a=b&Token=REDACTED&c=d"),
            ("%74oken=x;a=b", "%74oken=REDACTED;a=b"),
            (
                "user[token]=x&a.token=y",
                "user[token]=REDACTED&a.token=REDACTED",
            ),
            ("user%5Btoken%5D=x", "user%5Btoken%5D=REDACTED"),
            ("token", "token"),
            ("tokens=x&xtoken=y", "tokens=x&xtoken=y"),
            ("token=&b=1&", "token=REDACTED&b=1&"),
        ] {
            let found = redacted(query.as_bytes(), &names);
            assert_eq!(String::from_utf8_lossy(&found), expected, "{query}");
        }
        let url = b"https://a.test/x?token=1&b=2#top";
        let all = of_url(url, true, &names);
        assert_eq!(
            String::from_utf8_lossy(&all),
            "https://a.test/x?token=REDACTED&b=2"
        );
        assert_eq!(&*of_url(url, false, &names), b"https://a.test/x");
        assert_eq!(shown(b"/a?b", false, &names), None);
        assert_eq!(shown(b"/a", true, &names), None);
    }
}
