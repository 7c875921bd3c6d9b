//! HTTP/2 frame by frame (RFC 9113): for what no proper client would send.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::wire::Wire;
use super::{client, tls};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// RFC 9113 section 6.5.2.
const HEADER_TABLE_SIZE: u16 = 1;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub struct Frames {
    wire: Wire<TlsStream<TcpStream>>,
}

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Of the final response, whose body is still to come.
    Status(u16),
    /// `RST_STREAM` with this code.
    Reset(u32),
    /// `GOAWAY` with this code, or the connection was closed.
    Gone(Option<u32>),
}

impl Frames {
    /// A connection with the prefaces exchanged.
    pub async fn open(addr: SocketAddr, sni: &str) -> Frames {
        let mut config = tls::accepting_anything();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = client::connect(addr, sni, config).await.expect("connected");
        let mut frames = Frames {
            wire: Wire::new(stream),
        };
        frames.wire.send(PREFACE).await.expect("sent");
        // Without a dynamic table the server's header blocks can be read one by one.
        let settings = [&HEADER_TABLE_SIZE.to_be_bytes()[..], &[0; 4]].concat();
        frames.send(SETTINGS, 0, 0, &settings).await.expect("sent");
        frames
    }

    pub async fn send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> Result<(), String> {
        self.wire.send(frame(kind, flags, stream, payload)).await
    }

    /// Many frames with one write.
    pub async fn send_all(&mut self, frames: &[u8]) -> Result<(), String> {
        self.wire.send(frames).await
    }

    /// The next frame that is not about the connection itself.
    pub async fn next(&mut self) -> Result<Frame, String> {
        loop {
            let head = self.wire.exactly(9).await?;
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8;
            let payload = self.wire.exactly(length | usize::from(head[2])).await?;
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            let (kind, flags) = (head[3], head[4]);
            match kind {
                SETTINGS if flags & ACK == 0 => {
                    // The server may have closed already.
                    let _ = self.send(SETTINGS, ACK, 0, &[]).await;
                }
                PING if flags & ACK == 0 => {
                    let _ = self.send(PING, ACK, 0, &payload).await;
                }
                SETTINGS | PING | WINDOW_UPDATE => {}
                _ => {
                    return Ok(Frame {
                        kind,
                        flags,
                        stream,
                        payload,
                    });
                }
            }
        }
    }

    /// What comes of the request on `stream`; other streams are passed over.
    pub async fn outcome(&mut self, stream: u32) -> Outcome {
        loop {
            let Ok(frame) = self.next().await else {
                return Outcome::Gone(None);
            };
            match frame.kind {
                GOAWAY => return Outcome::Gone(frame.payload.get(4..8).map(be32)),
                RST_STREAM if frame.stream == stream => {
                    return Outcome::Reset(be32(&frame.payload));
                }
                HEADERS if frame.stream == stream => match status(&frame.payload) {
                    100..200 => {}
                    status => return Outcome::Status(status),
                },
                _ => {}
            }
        }
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header block of literals, never indexed, never Huffman coded (RFC 7541 section 6.2.2): what
/// is written here is what the server gets.
pub fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            push_length(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

/// RFC 7541 section 5.1 with a prefix of seven bits.
fn push_length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else {
        block.push(u8::try_from(length).expect("below 127"));
        return;
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128 + 128).expect("a byte"));
        rest /= 128;
    }
    block.push(u8::try_from(rest).expect("a byte"));
}

/// `:status`, which is the first field of a response.
fn status(block: &[u8]) -> u16 {
    // A change of the table's size may come first.
    let block = match block {
        [first, rest @ ..] if first & 0xe0 == 0x20 => rest,
        block => block,
    };
    match *block {
        [first @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(first - 0x88)],
        [_, length, ref rest @ ..] => {
            let text = &rest[..usize::from(length & 0x7f)];
            let digits = match length & 0x80 {
                0 => text.iter().map(|digit| digit - b'0').collect(),
                _ => huffman_digits(text),
            };
            digits[..3]
                .iter()
                .fold(0, |sum, digit| sum * 10 + u16::from(*digit))
        }
        _ => panic!("no header block: {block:?}"),
    }
}

/// The digits in the code of RFC 7541 appendix B: `0`, `1` and `2` in five bits, the others in six.
fn huffman_digits(text: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> = text
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
        .collect();
    let mut digits = Vec::new();
    let mut at = 0;
    let number = |at: usize, length: usize| {
        let bits = bits.get(at..at + length)?;
        Some(bits.iter().fold(0, |sum, bit| sum << 1 | bit))
    };
    while digits.len() < 3 {
        match number(at, 5).expect("three digits") {
            digit @ 0..=2 => {
                digits.push(digit);
                at += 5;
            }
            _ => {
                digits.push(number(at, 6).expect("three digits") - 0x19 + 3);
                at += 6;
            }
        }
    }
    digits
}

fn be32(bytes: impl AsRef<[u8]>) -> u32 {
    let bytes = bytes.as_ref();
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
