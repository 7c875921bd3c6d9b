//! TLS records seen from outside (RFC 8446, section 5.2), so that the client need not decrypt what
//! it would only count.

/// What AES-GCM's tag and the type of the content add to each record.
const OVERHEAD: usize = 17;

/// Where in a record the bytes are.
#[derive(Default)]
pub struct Records {
    header: Vec<u8>,
    length: usize,
    left: usize,
}

impl Records {
    /// How many of these bytes belong to the record that is under way, and how much plaintext is
    /// in it if it ends with them.
    pub fn next(&mut self, bytes: &[u8]) -> (usize, Option<usize>) {
        let mut taken = 0;
        if self.left == 0 {
            taken = bytes.len().min(5 - self.header.len());
            self.header.extend_from_slice(&bytes[..taken]);
            let [_, _, _, high, low] = self.header[..] else {
                return (taken, None);
            };
            self.header.clear();
            self.length = usize::from(u16::from_be_bytes([high, low]));
            self.left = self.length;
        }
        let count = self.left.min(bytes.len() - taken);
        self.left -= count;
        let plaintext = self.length.saturating_sub(OVERHEAD);
        (taken + count, (self.left == 0).then_some(plaintext))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(plaintext: usize) -> Vec<u8> {
        let length = u16::try_from(plaintext + OVERHEAD).unwrap().to_be_bytes();
        let mut bytes = vec![23, 3, 3, length[0], length[1]];
        bytes.resize(5 + plaintext + OVERHEAD, 0);
        bytes
    }

    #[test]
    fn records_end_where_they_end_however_they_come() {
        let bytes = [record(1), record(16_384), record(0), record(100)].concat();
        for portion in [1, 2, 7, 4096, bytes.len()] {
            let mut records = Records::default();
            let mut seen = Vec::new();
            for mut part in bytes.chunks(portion) {
                while !part.is_empty() {
                    let (count, plaintext) = records.next(part);
                    seen.extend(plaintext);
                    part = &part[count..];
                }
            }
            assert_eq!(seen, [1, 16_384, 0, 100], "{portion} bytes at a time");
        }
    }
}
