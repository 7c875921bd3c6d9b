//! How much work a file that a password protects asks for before it opens. Decrypts nothing.

/// Rounds of key derivation that are done for one file: one to ten seconds of one core. Programs
/// write 2,048 to 600,000; BoringSSL would do a hundred million, several times over.
pub const MAX_ROUNDS: u64 = if cfg!(fuzzing) {
    // What takes long finds nothing.
    1_000
} else {
    10_000_000
};

/// Deeper than this nothing that we read is nested.
const MAX_DEPTH: usize = 24;

/// The rounds that a DER or BER structure asks for, as far as it says so in the clear: each salt
/// (an OCTET STRING) with the INTEGER behind it, as in PBEParameter and PBKDF2-params (RFC 8018
/// appendix A) and in MacData (RFC 7292 section 4). What stands inside encrypted contents is not
/// seen; only one who knows the password can have put it there.
pub fn rounds(structure: &[u8]) -> u64 {
    count(structure, MAX_DEPTH)
}

fn count(mut elements: &[u8], depth: usize) -> u64 {
    let mut sum: u64 = 0;
    let mut after_salt = false;
    while let Some((element, rest)) = Element::first(elements) {
        elements = rest;
        if after_salt && element.tag == INTEGER {
            sum = sum.saturating_add(value(element.content));
        }
        after_salt = matches!(element.tag, OCTET_STRING | OCTET_STRING_IN_PARTS);
        if depth > 0 {
            sum = sum.saturating_add(match element.tag {
                OCTET_STRING_IN_PARTS => count(&joined(element.content), depth - 1),
                OCTET_STRING if element.content.first() != Some(&SEQUENCE) => 0,
                tag if tag == OCTET_STRING || tag & CONSTRUCTED != 0 => {
                    count(element.content, depth - 1)
                }
                _ => 0,
            });
        }
    }
    sum
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
/// BER alone has them.
const OCTET_STRING_IN_PARTS: u8 = OCTET_STRING | CONSTRUCTED;
const SEQUENCE: u8 = 0x10 | CONSTRUCTED;
const CONSTRUCTED: u8 = 0x20;

/// A tag of one byte, and what it stands for.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
}

impl<'a> Element<'a> {
    /// The first element and what comes after it. Of one without a length (BER) the content is all
    /// that follows: its end is an empty element, which changes nothing.
    fn first(bytes: &'a [u8]) -> Option<(Element<'a>, &'a [u8])> {
        let (&tag, rest) = bytes.split_first()?;
        let (&length, rest) = rest.split_first()?;
        let (length, rest) = match length {
            0x80 => (rest.len(), rest),
            0x81.. => {
                let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
                (usize::try_from(value(digits)).ok()?, rest)
            }
            short => (usize::from(short), rest),
        };
        let (content, rest) = rest.split_at_checked(length)?;
        Some((Element { tag, content }, rest))
    }
}

/// What stands behind the tag and the length of the first element.
pub fn content_of(bytes: &[u8]) -> &[u8] {
    Element::first(bytes).map_or(&[], |(element, _)| element.content)
}

fn joined(mut parts: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some((part, rest)) = Element::first(parts) {
        whole.extend_from_slice(part.content);
        parts = rest;
    }
    whole
}

/// A big-endian number; the largest there is if it has more than eight bytes.
fn value(digits: &[u8]) -> u64 {
    let digits = &digits[digits.iter().take_while(|&&digit| digit == 0).count()..];
    if digits.len() > 8 {
        return u64::MAX;
    }
    digits
        .iter()
        .fold(0, |value, &digit| value << 8 | u64::from(digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn salts_and_their_rounds_are_found_at_any_depth() {
        let params = b"\x30\x08\x04\x02\xaa\xbb\x02\x02\x08\x00";
        assert_eq!(rounds(params), 2048);
        let mut nested = params.to_vec();
        for tag in [0x04, 0xa0, 0x30, 0x04] {
            // An OCTET STRING is looked into where a SEQUENCE stands in it.
            if nested[0] != 0x30 && tag == 0x04 {
                nested = [&[0x30, nested.len() as u8], &nested[..]].concat();
            }
            nested = [&[tag, nested.len() as u8], &nested[..]].concat();
        }
        assert_eq!(rounds(&nested), 2048);
        assert_eq!(rounds(&[&nested[..], params].concat()), 4096);
    }

    #[test]
    fn lengths_that_ber_leaves_open_hide_nothing() {
        let open = b"\x30\x80\x30\x80\x04\x02\xaa\xbb\x02\x02\x08\x00\x00\x00\x00\x00";
        assert_eq!(rounds(open), 2048);
        let parts = b"\x24\x0e\x04\x04\x30\x08\x04\x02\x04\x06\xaa\xbb\x02\x02\x08\x00";
        assert_eq!(rounds(parts), 2048);
        let mut two = b"\x30\x80".to_vec();
        two.extend_from_slice(&open[2..12]);
        two.extend_from_slice(&open[2..12]);
        assert_eq!(rounds(&two), 4096);
    }

    #[test]
    fn numbers_too_large_and_nonsense_are_survived() {
        let huge = b"\x30\x0d\x04\x00\x02\x09\x01\x00\x00\x00\x00\x00\x00\x00\x00";
        assert_eq!(rounds(huge), u64::MAX);
        assert_eq!(rounds(b""), 0);
        assert_eq!(rounds(b"\x30\xff\xff"), 0);
        assert_eq!(rounds(&[0x30, 0x80].repeat(10_000)), 0);
        // A key of RFC 5915 has its INTEGER before its OCTET STRING.
        assert_eq!(rounds(b"\x30\x07\x02\x01\x01\x04\x02\xaa\xbb"), 0);
    }
}
