//! PEM (RFC 7468, and RFC 1421 for what has headers): the blocks of a text and their bytes. Knows
//! nothing of what the blocks hold.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use memchr::memmem;

/// How a block begins; an unfinished one may have no more than this.
pub const MARKER: &[u8] = b"-----BEGIN";

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

/// Some programs leave out the padding, and nobody looks at the bits that it covers.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A block of a text.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// Such as `CERTIFICATE`.
    pub label: &'a [u8],
    /// All of it, from the first dash to the last.
    pub text: &'a [u8],
    /// What is between its first line and its last.
    inside: &'a [u8],
}

/// Why there is no block where one begins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    #[error("is cut off: its last PEM block has no end (still being written, or a full disk?)")]
    Truncated,
    #[error("has a damaged PEM block: {0}")]
    Damaged(String),
}

/// The blocks of a text in their order; other text between them is passed over.
pub fn blocks(text: &[u8]) -> Blocks<'_> {
    Blocks { text, at: 0 }
}

/// See [`blocks`].
pub struct Blocks<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Result<Block<'a>, PemError>;

    fn next(&mut self) -> Option<Self::Item> {
        let begin = self.line_with(BEGIN)?;
        let block = self.block(begin);
        if block.is_err() {
            self.at = self.text.len();
        }
        Some(block)
    }
}

impl<'a> Blocks<'a> {
    /// The place of the next line that starts like this.
    fn line_with(&self, start: &[u8]) -> Option<usize> {
        let found = memmem::find_iter(&self.text[self.at..], start);
        let mut found = found.map(|offset| self.at + offset);
        found.find(|&at| at == 0 || matches!(self.text[at - 1], b'\n' | b'\r'))
    }

    fn block(&mut self, begin: usize) -> Result<Block<'a>, PemError> {
        let text = self.text;
        let rest = &text[begin..];
        let Some(length) = memchr::memchr2(b'\n', b'\r', rest) else {
            return Err(PemError::Truncated);
        };
        let label = label(&rest[..length])?;
        self.at = begin + length;
        let start = self.at;
        let end_line = [END, label, DASHES].concat();
        let end = self.line_with(&end_line).ok_or(PemError::Truncated)?;
        self.at = end + end_line.len();
        Ok(Block {
            label,
            text: &text[begin..self.at],
            inside: &text[start..end],
        })
    }
}

/// The label in a block's first line.
fn label(line: &[u8]) -> Result<&[u8], PemError> {
    let label = line.strip_prefix(BEGIN);
    let label = label.and_then(|rest| rest.trim_ascii_end().strip_suffix(DASHES));
    label
        .filter(|label| !label.ends_with(b"-"))
        .ok_or_else(|| damaged("its first line has no end (expected five dashes)"))
}

fn damaged(cause: &str) -> PemError {
    PemError::Damaged(cause.to_owned())
}

impl Block<'_> {
    /// Whether its header lines say that it is encrypted (RFC 1421 section 4.6.1.1).
    pub fn is_encrypted(&self) -> bool {
        memmem::find(self.inside, b"Proc-Type: 4,ENCRYPTED").is_some()
    }

    /// What stands in it.
    pub fn decode(&self) -> Result<Vec<u8>, PemError> {
        let digits = self.digits();
        BASE64
            .decode(digits)
            .map_err(|error| damaged(&error.to_string()))
    }

    /// The same of a secret: how long it takes says nothing of its content.
    pub fn decode_secret(&self) -> Result<Vec<u8>, PemError> {
        let mut digits = self.digits();
        digits.resize(digits.len().next_multiple_of(4), b'=');
        let text = str::from_utf8(&digits).map_err(|error| damaged(&error.to_string()))?;
        boring::base64::decode_block(text).map_err(|_| damaged("it is not base64"))
    }

    fn digits(&self) -> Vec<u8> {
        let mut digits = Vec::with_capacity(self.inside.len());
        for line in self.inside.split(u8::is_ascii_whitespace) {
            digits.extend_from_slice(line);
        }
        digits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Vec<Result<String, PemError>> {
        let label = |block: Block<'_>| String::from_utf8(block.label.to_vec()).unwrap();
        blocks(text.as_bytes())
            .map(|block| block.map(label))
            .collect()
    }

    #[test]
    fn blocks_are_found_at_the_starts_of_lines() {
        let text = "x\r\n-----BEGIN A-----  \r\nAA==\r\n-----END A-----\r\n\
                    a -----BEGIN B-----\n-----BEGIN C D-----\n\n-----END C-----\n-----END C D-----";
        assert_eq!(labels(text), [Ok("A".to_owned()), Ok("C D".to_owned())]);
    }

    #[test]
    fn what_has_no_end_is_an_error_and_the_last_thing() {
        let truncated = [Err(PemError::Truncated)];
        for text in [
            "-----BEGIN A",
            "-----BEGIN A-----",
            "-----BEGIN A-----\nAAAA\n",
            "-----BEGIN A-----\nAAAA\n-----END A----",
            "-----BEGIN A-----\nAAAA\n-----END B-----\n",
            "-----BEGIN A-----\nAAAA -----END A-----\n",
        ] {
            assert_eq!(labels(text), truncated, "{text:?}");
        }
        for text in [
            "-----BEGIN A----\nAAAA",
            "-----BEGIN A------\n",
            "-----BEGIN A\nx",
        ] {
            let found = labels(text);
            assert!(
                matches!(&found[..], [Err(PemError::Damaged(_))]),
                "{text:?}"
            );
        }
    }

    #[test]
    fn both_ways_to_decode_take_the_same_forms() {
        for (inside, wanted) in [
            ("aGVs\nbG8=", Some("hello")),
            ("aGVsbG8", Some("hello")),
            (" aG\tVs\r\nbG8=\r\n\r\n", Some("hello")),
            ("", Some("")),
            ("aGVs-bG8=", None),
            ("-----BEGIN A-----\naGVs", None),
        ] {
            let text = format!("-----BEGIN A-----\n{inside}\n-----END A-----\n");
            let block = blocks(text.as_bytes()).next().unwrap().unwrap();
            let wanted = wanted.map(|text| text.as_bytes().to_vec());
            assert_eq!(block.decode().ok(), wanted, "{inside:?}");
            assert_eq!(block.decode_secret().ok(), wanted, "{inside:?}");
        }
    }
}
