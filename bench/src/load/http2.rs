//! Just enough HTTP/2 (RFC 9113): prepared header blocks, and of an answer's frames the status and
//! the end. Windows are as large as they can be, so that the client never holds a server up.

use std::time::Instant;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// Both END_STREAM of DATA and HEADERS, and ACK of SETTINGS and PING.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

const LARGEST_WINDOW: u32 = (1 << 31) - 1;
const INITIAL_WINDOW: u32 = 65_535;
/// So much of the connection's window is used before it is given back.
const GIVE_BACK: u32 = 1 << 30;

/// The header blocks (RFC 7541) of a connection's first request and of all that follow: what does
/// not change is in the dynamic table from the first one on, as in a browser.
pub struct Blocks {
    first: Vec<u8>,
    next: Vec<u8>,
}

impl Blocks {
    pub fn new(name: &str, path: &str) -> Blocks {
        // :method GET, :scheme https from the static table.
        let mut first = vec![0x82, 0x87];
        // With indexing, by the index of the name: :authority, :path, user-agent, accept.
        for (index, value) in [(1, name), (4, path), (58, "bench/1"), (19, "*/*")] {
            first.push(0x40 | index);
            first.push(u8::try_from(value.len()).expect("short"));
            first.extend_from_slice(value.as_bytes());
        }
        // The last one that was added has the lowest index, 62.
        let next = vec![0x82, 0x87, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];
        Blocks { first, next }
    }
}

/// Appends what a client begins with: preface, settings, and the connection's window opened wide.
pub fn begin(out: &mut Vec<u8>) {
    out.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    frame(out, SETTINGS, 0, 0, 12);
    out.extend_from_slice(&[0, 2, 0, 0, 0, 0]); // ENABLE_PUSH
    out.extend_from_slice(&[0, 4]); // INITIAL_WINDOW_SIZE
    out.extend_from_slice(&LARGEST_WINDOW.to_be_bytes());
    give_back(out, LARGEST_WINDOW - INITIAL_WINDOW);
}

fn give_back(out: &mut Vec<u8>, increment: u32) {
    frame(out, WINDOW_UPDATE, 0, 0, 4);
    out.extend_from_slice(&increment.to_be_bytes());
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, length: usize) {
    let length = u32::try_from(length).expect("short").to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

#[derive(Default)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    left: usize,
}

/// One connection's streams, and where in a frame the bytes are.
pub struct Streams {
    next: u32,
    open: Vec<(u32, Instant)>,
    header: Vec<u8>,
    frame: Option<Frame>,
    payload: Vec<u8>,
    used: u32,
    /// The server wants no more requests here.
    pub going_away: bool,
}

impl Streams {
    pub fn new() -> Streams {
        Streams {
            next: 1,
            open: Vec::new(),
            header: Vec::with_capacity(9),
            frame: None,
            payload: Vec::new(),
            used: 0,
            going_away: false,
        }
    }

    pub fn open(&self) -> usize {
        self.open.len()
    }

    pub fn request(&mut self, blocks: &Blocks, due: Instant, out: &mut Vec<u8>) {
        let block = if self.next == 1 {
            &blocks.first
        } else {
            &blocks.next
        };
        frame(
            out,
            HEADERS,
            END_STREAM | END_HEADERS,
            self.next,
            block.len(),
        );
        out.extend_from_slice(block);
        self.open.push((self.next, due));
        self.next += 2;
    }

    /// Takes what came; appends to `done` when each answer that is now complete was due, and to
    /// `out` what has to be said. Returns how much of it was body.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        out: &mut Vec<u8>,
        done: &mut Vec<Instant>,
    ) -> Result<u64, String> {
        let mut body = 0;
        while !bytes.is_empty() || self.frame.as_ref().is_some_and(|frame| frame.left == 0) {
            let Some(frame) = &mut self.frame else {
                bytes = self.receive_header(bytes);
                continue;
            };
            let count = frame.left.min(bytes.len());
            frame.left -= count;
            if frame.kind == DATA {
                body += count as u64;
                self.used += u32::try_from(count).expect("a part of a frame");
            } else {
                self.payload.extend_from_slice(&bytes[..count]);
            }
            bytes = &bytes[count..];
            if frame.left == 0 {
                self.end_of_frame(out, done)?;
            }
        }
        Ok(body)
    }

    fn receive_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let count = bytes.len().min(9 - self.header.len());
        self.header.extend_from_slice(&bytes[..count]);
        if let [a, b, c, kind, flags, s, t, u, v] = self.header[..] {
            self.frame = Some(Frame {
                kind,
                flags,
                stream: u32::from_be_bytes([s, t, u, v]) & LARGEST_WINDOW,
                left: u32::from_be_bytes([0, a, b, c]) as usize,
            });
            self.header.clear();
        }
        &bytes[count..]
    }

    fn end_of_frame(&mut self, out: &mut Vec<u8>, done: &mut Vec<Instant>) -> Result<(), String> {
        let Some(ended) = self.frame.take() else {
            return Ok(());
        };
        match ended.kind {
            HEADERS => check_status(&ended, &self.payload)?,
            RST_STREAM => return Err(format!("stream reset: {:?}", self.payload)),
            SETTINGS if ended.flags & ACK == 0 => frame(out, SETTINGS, ACK, 0, 0),
            PING if ended.flags & ACK == 0 => {
                frame(out, PING, ACK, 0, self.payload.len());
                out.extend_from_slice(&self.payload);
            }
            GOAWAY => self.going_away = true,
            _ => {}
        }
        self.payload.clear();
        if matches!(ended.kind, DATA | HEADERS) && ended.flags & END_STREAM != 0 {
            let index = self
                .open
                .iter()
                .position(|(stream, _)| *stream == ended.stream)
                .ok_or("an answer to nothing")?;
            done.push(self.open.swap_remove(index).1);
        }
        if self.used >= GIVE_BACK {
            give_back(out, self.used);
            self.used = 0;
        }
        Ok(())
    }
}

/// Every server here writes `:status: 200` as index 8 of the static table; a change of the dynamic
/// table's size may come before it.
fn check_status(frame: &Frame, payload: &[u8]) -> Result<(), String> {
    let skipped =
        usize::from(frame.flags & PADDED != 0) + if frame.flags & PRIORITY != 0 { 5 } else { 0 };
    let block = payload.get(skipped..).unwrap_or_default();
    let mut fields = block.iter().skip_while(|byte| **byte & 0xe0 == 0x20);
    if fields.next() == Some(&0x88) {
        Ok(())
    } else {
        Err(format!("no status 200 in {block:02x?}"))
    }
}
