//! `Range` of bytes (RFC 9110 section 14): which parts of a file are asked for.

/// A part of a file that is there: `start` is within it, and no byte is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    /// Never 0.
    pub length: u64,
}

/// What comes of a `Range`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// It is not followed: it is malformed, of another unit, or wants more than the whole.
    All,
    One(Span),
    Several(Vec<Span>),
    /// No byte of it is there.
    Unsatisfiable,
}

/// Parts in one answer. More are asked for by nobody who means well.
const MAX_SPANS: usize = 16;

/// Reads the value of the field for a file of this size.
pub fn parse(value: &[u8], size: u64) -> Ranges {
    let Some(set) = value
        .split_at_checked(6)
        .and_then(|(unit, set)| unit.eq_ignore_ascii_case(b"bytes=").then_some(set))
    else {
        return Ranges::All;
    };
    let mut spans = Vec::new();
    for one in set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        match span(one, size) {
            _ if one.is_empty() => {}
            Some(Some(_)) if spans.len() == MAX_SPANS => return Ranges::All,
            Some(Some(span)) => spans.push(span),
            Some(None) => {}
            None => return Ranges::All,
        }
    }
    let is_empty = set.iter().all(|byte| matches!(byte, b',' | b' ' | b'\t'));
    match spans[..] {
        _ if is_empty => Ranges::All,
        [] => Ranges::Unsatisfiable,
        [span] => Ranges::One(span),
        // Section 14.2: what asks for the same bytes again and again may be ignored.
        _ if overlap(&spans) => Ranges::All,
        _ => Ranges::Several(spans),
    }
}

/// `0-499`, `500-` or `-500`. The outer `None`: it is none of them; the inner: no byte of it is
/// there.
fn span(text: &[u8], size: u64) -> Option<Option<Span>> {
    let text = std::str::from_utf8(text).ok()?;
    let (first, last) = text.split_once('-')?;
    let number = |digits: &str| {
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        // What is too large for us is larger than any file.
        is_number.then(|| digits.parse::<u64>().unwrap_or(u64::MAX))
    };
    let (start, end) = match (first, last) {
        ("", last) => (size.saturating_sub(number(last)?), size),
        (first, "") => (number(first)?, size),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            (first, last.saturating_add(1).min(size))
        }
    };
    let length = end.saturating_sub(start);
    Some((length > 0).then_some(Span { start, length }))
}

fn overlap(spans: &[Span]) -> bool {
    let mut sorted = spans.to_vec();
    sorted.sort_by_key(|span| span.start);
    let pairs = sorted.iter().zip(&sorted[1..]);
    pairs
        .into_iter()
        .any(|(one, next)| one.start + one.length > next.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(start: u64, length: u64) -> Ranges {
        Ranges::One(Span { start, length })
    }

    #[test]
    fn parts_that_are_there() {
        for (value, expected) in [
            ("bytes=0-0", one(0, 1)),
            ("Bytes=0-99", one(0, 100)),
            ("bytes=0-1000", one(0, 100)),
            ("bytes=90-", one(90, 10)),
            ("bytes=-10", one(90, 10)),
            ("bytes=-1000", one(0, 100)),
            ("bytes=99-99999999999999999999999", one(99, 1)),
            ("bytes= 5-6 , ", one(5, 2)),
            ("bytes=5-6,200-", one(5, 2)),
            ("bytes=100-", Ranges::Unsatisfiable),
            ("bytes=-0", Ranges::Unsatisfiable),
            ("bytes=100-200, -0", Ranges::Unsatisfiable),
            ("bytes=5-4", Ranges::All),
            ("bytes=", Ranges::All),
            ("bytes=-", Ranges::All),
            ("bytes=a-b", Ranges::All),
            ("bytes=+1-2", Ranges::All),
            ("bytes=1-2,x", Ranges::All),
            ("items=0-1", Ranges::All),
            ("bytes", Ranges::All),
            ("", Ranges::All),
            ("bytes=0-50,50-60", Ranges::All),
        ] {
            assert_eq!(parse(value.as_bytes(), 100), expected, "{value}");
        }
        let several = parse(b"bytes=0-1,98-,10-19", 100);
        let spans = [(0, 2), (98, 2), (10, 10)].map(|(start, length)| Span { start, length });
        assert_eq!(several, Ranges::Several(spans.to_vec()));
        assert_eq!(parse(b"bytes=0-", 0), Ranges::Unsatisfiable);
        let many: Vec<String> = (0..17).map(|n| format!("{0}-{0}", n * 2)).collect();
        let many = format!("bytes={}", many.join(","));
        assert_eq!(parse(many.as_bytes(), 100), Ranges::All);
    }
}
