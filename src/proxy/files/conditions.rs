//! Conditional requests (RFC 9110 section 13): whether what the client has is what there is.

use time::OffsetDateTime;

use super::range::{self, Ranges};
use crate::message::RequestHead;

/// What a request says about what its client has, and which parts it wants.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    if_match: Option<Vec<u8>>,
    if_none_match: Option<Vec<u8>>,
    if_modified_since: Option<OffsetDateTime>,
    if_unmodified_since: Option<OffsetDateTime>,
    if_range: Option<Vec<u8>>,
    /// For GET alone.
    range: Option<Vec<u8>>,
}

/// What there is.
pub struct Current<'c> {
    /// A strong entity tag, with its quotes.
    pub etag: &'c str,
    /// In whole seconds.
    pub modified: OffsetDateTime,
    pub size: u64,
    pub now: OffsetDateTime,
}

/// What is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// 412.
    Failed,
    /// 304.
    NotModified,
    Send(Ranges),
}

impl Conditions {
    pub fn of(request: &RequestHead) -> Conditions {
        // Several fields of one list are one list (RFC 9110 section 5.3).
        let list = |name: &str| {
            let mut values = request.fields.named(name);
            let mut all = values.next()?.to_vec();
            for value in values {
                all.extend_from_slice(b", ");
                all.extend_from_slice(value);
            }
            Some(all)
        };
        let date_of = |name: &str| request.fields.named(name).next().and_then(date);
        let is_get = request.method == http::Method::GET;
        let range = request.fields.named("range").next().filter(|_| is_get);
        Conditions {
            if_match: list("if-match"),
            if_none_match: list("if-none-match"),
            if_modified_since: date_of("if-modified-since"),
            if_unmodified_since: date_of("if-unmodified-since"),
            if_range: list("if-range"),
            range: range.map(<[u8]>::to_vec),
        }
    }

    /// In the order of section 13.2.2.
    pub fn judge(&self, current: &Current<'_>) -> Verdict {
        match (&self.if_match, self.if_unmodified_since) {
            (Some(tags), _) if !lists(tags, current.etag, Comparison::Strong) => {
                return Verdict::Failed;
            }
            (None, Some(since)) if current.modified > since => return Verdict::Failed,
            _ => {}
        }
        match (&self.if_none_match, self.if_modified_since) {
            (Some(tags), _) if lists(tags, current.etag, Comparison::Weak) => {
                return Verdict::NotModified;
            }
            (None, Some(since)) if current.modified <= since => return Verdict::NotModified,
            _ => {}
        }
        match &self.range {
            Some(range) if self.has_current(current) => {
                Verdict::Send(range::parse(range, current.size))
            }
            _ => Verdict::Send(Ranges::All),
        }
    }

    /// Whether the parts that the client has fit those that there are (section 13.1.5).
    fn has_current(&self, current: &Current<'_>) -> bool {
        /// What was changed so shortly before may have been changed again within the same second.
        const SETTLED: time::Duration = time::Duration::SECOND;
        let Some(value) = &self.if_range else {
            return true;
        };
        match date(value) {
            Some(date) => date == current.modified && current.now - current.modified > SETTLED,
            None => value.trim_ascii() == current.etag.as_bytes(),
        }
    }
}

fn date(value: &[u8]) -> Option<OffsetDateTime> {
    let text = std::str::from_utf8(value).ok()?;
    httpdate::parse_http_date(text.trim())
        .ok()
        .map(OffsetDateTime::from)
}

/// RFC 9110 section 8.8.3.2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a list of entity tags, or `*`, has this strong one. A tag may have commas in it.
fn lists(list: &[u8], etag: &str, comparison: Comparison) -> bool {
    if list.trim_ascii() == b"*" {
        return true;
    }
    let mut rest = list;
    loop {
        let skipped = rest
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t' | b','));
        rest = &rest[skipped.count()..];
        let (is_weak, tag) = match rest.strip_prefix(b"W/") {
            Some(tag) => (true, tag),
            None => (false, rest),
        };
        if tag.first() != Some(&b'"') {
            return false;
        }
        let Some(end) = tag[1..].iter().position(|byte| *byte == b'"') else {
            return false;
        };
        let (tag, after) = tag.split_at(end + 2);
        if tag == etag.as_bytes() && (comparison == Comparison::Weak || !is_weak) {
            return true;
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const MODIFIED: OffsetDateTime = datetime!(2026-11-01 12:00:00 UTC);
    const SAME: &str = "Sun, 01 Nov 2026 12:00:00 GMT";
    const BEFORE: &str = "Sun, 01 Nov 2026 11:59:59 GMT";
    const AFTER: &str = "Sun, 01 Nov 2026 12:00:01 GMT";

    fn judged(fields: &[(&str, &str)]) -> Verdict {
        judged_at(MODIFIED + time::Duration::HOUR, fields)
    }

    fn judged_at(now: OffsetDateTime, fields: &[(&str, &str)]) -> Verdict {
        let mut request = RequestHead::default();
        for (name, value) in fields {
            request.fields.push(name.as_bytes(), value.as_bytes());
        }
        Conditions::of(&request).judge(&Current {
            etag: "\"a-1\"",
            modified: MODIFIED,
            size: 100,
            now,
        })
    }

    #[test]
    fn preconditions_in_their_order() {
        let all = Verdict::Send(Ranges::All);
        for (fields, expected) in [
            (&[][..], all.clone()),
            (&[("If-None-Match", "\"a-1\"")], Verdict::NotModified),
            (&[("If-None-Match", "W/\"a-1\"")], Verdict::NotModified),
            (
                &[("If-None-Match", "\"x,y\" , \"a-1\"")],
                Verdict::NotModified,
            ),
            (&[("If-None-Match", "*")], Verdict::NotModified),
            (&[("If-None-Match", "\"b\"")], all.clone()),
            (&[("If-None-Match", "a-1")], all.clone()),
            (&[("If-None-Match", "\"a-1")], all.clone()),
            (
                &[("If-None-Match", "\"b\""), ("If-None-Match", "\"a-1\"")],
                Verdict::NotModified,
            ),
            // A tag is more than a date.
            (
                &[("If-None-Match", "\"b\""), ("If-Modified-Since", AFTER)],
                all.clone(),
            ),
            (&[("If-Modified-Since", SAME)], Verdict::NotModified),
            (&[("If-Modified-Since", AFTER)], Verdict::NotModified),
            (&[("If-Modified-Since", BEFORE)], all.clone()),
            (&[("If-Modified-Since", "yesterday")], all.clone()),
            (&[("If-Match", "\"a-1\"")], all.clone()),
            (&[("If-Match", "*")], all.clone()),
            (&[("If-Match", "W/\"a-1\"")], Verdict::Failed),
            (&[("If-Match", "\"b\"")], Verdict::Failed),
            (
                &[("If-Match", "\"b\""), ("If-None-Match", "\"a-1\"")],
                Verdict::Failed,
            ),
            (&[("If-Unmodified-Since", SAME)], all.clone()),
            (&[("If-Unmodified-Since", BEFORE)], Verdict::Failed),
            (
                &[("If-Match", "\"a-1\""), ("If-Unmodified-Since", BEFORE)],
                all.clone(),
            ),
        ] {
            assert_eq!(judged(fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn parts_are_sent_of_what_the_client_has() {
        let part = Verdict::Send(range::parse(b"bytes=5-9", 100));
        let all = Verdict::Send(Ranges::All);
        for (condition, expected) in [
            (None, &part),
            (Some("\"a-1\""), &part),
            (Some("W/\"a-1\""), &all),
            (Some("\"b\""), &all),
            (Some(SAME), &part),
            (Some(AFTER), &all),
            (Some(BEFORE), &all),
        ] {
            let mut fields = vec![("Range", "bytes=5-9")];
            fields.extend(condition.map(|value| ("If-Range", value)));
            assert_eq!(&judged(&fields), expected, "{condition:?}");
        }
        let fresh = judged_at(MODIFIED, &[("Range", "bytes=5-9"), ("If-Range", SAME)]);
        assert_eq!(fresh, all, "a second may have two contents");
    }
}
