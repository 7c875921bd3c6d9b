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
