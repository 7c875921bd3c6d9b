//! Which content codings a client takes (RFC 9110 section 12.5.3).

pub use crate::config::Coding;
use crate::message::Fields;

/// Those of `offered` that the client takes, in the order of its preference, and where it has none,
/// in that of the offer. What it would rather have as it is, is not among them.
pub fn accepted(fields: &Fields, offered: &[Coding]) -> Vec<Coding> {
    let mut said = Vec::new();
    for value in fields.named("accept-encoding") {
        said.extend(value.split(|byte| *byte == b',').map(member));
    }
    let weight = |name: &str| {
        let mut said = said.iter();
        let found = said.find(|(coding, _)| coding.eq_ignore_ascii_case(name.as_bytes()));
        found.map(|(_, weight)| *weight)
    };
    let any = weight("*").unwrap_or(0);
    let plain = weight("identity").unwrap_or(1);
    let mut found: Vec<(u16, Coding)> = Vec::new();
    for coding in offered {
        // RFC 9110 section 8.4.1.3: x-gzip is gzip.
        let alias = || {
            (*coding == Coding::Gzip)
                .then(|| weight("x-gzip"))
                .flatten()
        };
        let weight = weight(coding.as_str()).or_else(alias).unwrap_or(any);
        if weight > 0 && weight >= plain {
            found.push((weight, *coding));
        }
    }
    found.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    found.into_iter().map(|(_, coding)| coding).collect()
}

/// A name and its weight in thousandths; one that is malformed counts as 0.
fn member(text: &[u8]) -> (&[u8], u16) {
    let mut parts = text.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let name = parts.next().unwrap_or_default();
    let weight = parts.find_map(|part| {
        let at = part.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (part[..at].trim_ascii(), part[at + 1..].trim_ascii());
        name.eq_ignore_ascii_case(b"q").then(|| thousandths(value))
    });
    (name, weight.unwrap_or(1000))
}

/// RFC 9110 section 12.4.2: up to three digits behind the point.
fn thousandths(text: &[u8]) -> u16 {
    let digits = match text {
        [b'1'] => return 1000,
        [b'1', b'.', zeros @ ..] if zeros.iter().all(|byte| *byte == b'0') => return 1000,
        [b'0', b'.', digits @ ..] => digits,
        _ => return 0,
    };
    let is_number = digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit);
    let digit = |at: usize| u16::from(digits.get(at).map_or(0, |byte| byte - b'0'));
    match is_number {
        true => digit(0) * 100 + digit(1) * 10 + digit(2),
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_chooses_and_the_offer_breaks_ties() {
        const OFFERED: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];
        for (value, expected) in [
            ("gzip, deflate, br, zstd", "zstd br gzip"),
            ("gzip", "gzip"),
            ("GZIP", "gzip"),
            ("x-gzip", "gzip"),
            ("gzip;q=1.0, br;q=0.5", "gzip br"),
            ("gzip ; Q = 0.001", "gzip"),
            ("gzip;q=0.01", "gzip"),
            ("gzip;q=0, *", "zstd br"),
            ("*;q=0.3", "zstd br gzip"),
            ("*;q=0", ""),
            ("br;q=0.8, identity;q=0.9", ""),
            ("br;q=0.8, gzip, identity;q=0.9", "gzip"),
            ("identity;q=0", ""),
            ("br;q=1.001, gzip;q=x", ""),
            ("br;q=2", ""),
            ("deflate", ""),
            ("", ""),
        ] {
            let mut fields = Fields::default();
            fields.push(b"Accept-Encoding", value.as_bytes());
            let found = accepted(&fields, &OFFERED);
            let found: Vec<_> = found.into_iter().map(Coding::as_str).collect();
            assert_eq!(found.join(" "), expected, "{value}");
        }
        assert!(accepted(&Fields::default(), &OFFERED).is_empty());
    }
}
