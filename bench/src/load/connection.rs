//! One connection of the client: a socket, TLS, and the requests under way.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use mio::net::TcpStream;
use rustls::{ClientConnection, HandshakeKind};

use super::records::Records;
use super::{Plan, Protocol, Target, http1, http2};

/// An answer of which more than this is to come is counted record by record and not decrypted,
/// which would cost as much as what the server does. No other can follow it on the connection.
const UNDECRYPTED: u64 = 16 << 20;

/// What client and server agreed on.
#[derive(Clone, Debug)]
pub struct Negotiated {
    pub group: String,
    pub suite: String,
}

/// Buffers that all connections of a thread share.
pub struct Scratch {
    input: Vec<u8>,
    /// When each request that was answered just now was due.
    pub done: Vec<Instant>,
}

impl Scratch {
    pub fn new() -> Scratch {
        Scratch {
            input: vec![0; 256 << 10],
            done: Vec::new(),
        }
    }
}

/// What happened on a connection, beside the answers in [`Scratch::done`].
#[derive(Default)]
pub struct Progress {
    pub established: Option<HandshakeKind>,
    pub body_bytes: u64,
    /// The server wants no more requests here, or has gone.
    pub ended: bool,
}

enum Exchange {
    Http1 {
        reader: http1::Reader,
        due: Option<Instant>,
    },
    Http2(http2::Streams),
}

pub struct Connection {
    pub stream: TcpStream,
    tls: ClientConnection,
    exchange: Exchange,
    /// Which of the plan's targets it asks for.
    target: usize,
    established: bool,
    output: Vec<u8>,
    records: Records,
    /// What is still to come of an answer that is not decrypted.
    undecrypted: Option<u64>,
}

impl Connection {
    pub fn open(plan: &Plan, target: usize) -> Result<Connection, String> {
        let stream = connect(plan.address).map_err(|error| error.to_string())?;
        let name = plan.targets[target].server_name.clone();
        let tls =
            ClientConnection::new(plan.tls.clone(), name).map_err(|error| error.to_string())?;
        Ok(Connection {
            stream,
            tls,
            exchange: match plan.protocol {
                Protocol::Http1 => Exchange::Http1 {
                    reader: http1::Reader::default(),
                    due: None,
                },
                Protocol::Http2 => Exchange::Http2(http2::Streams::new()),
            },
            target,
            established: false,
            output: Vec::new(),
            records: Records::default(),
            undecrypted: None,
        })
    }

    pub fn is_established(&self) -> bool {
        self.established
    }

    /// How many requests are under way.
    pub fn pending(&self) -> usize {
        match &self.exchange {
            Exchange::Http1 { due, .. } => usize::from(due.is_some()),
            Exchange::Http2(streams) => streams.open(),
        }
    }

    /// Requests are for this target from now on.
    pub fn aim_at(&mut self, target: usize) {
        self.target = target;
    }

    /// Prepares a request; [`flush`](Self::flush) sends it.
    pub fn request(&mut self, targets: &[Target], due: Instant) {
        let target = &targets[self.target];
        match &mut self.exchange {
            Exchange::Http1 { due: slot, .. } => {
                self.output.extend_from_slice(&target.request);
                *slot = Some(due);
            }
            Exchange::Http2(streams) => streams.request(&target.blocks, due, &mut self.output),
        }
    }

    /// Reads what has come.
    pub fn receive(&mut self, scratch: &mut Scratch) -> Result<Progress, String> {
        let mut progress = Progress::default();
        loop {
            let count = match self.stream.read(&mut scratch.input) {
                Ok(0) => {
                    progress.ended = true;
                    break;
                }
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.to_string()),
            };
            self.take(&scratch.input[..count], &mut progress, &mut scratch.done)?;
            // A short read has emptied the socket; the next byte is a new event.
            if count < scratch.input.len() {
                break;
            }
        }
        if let Exchange::Http2(streams) = &self.exchange {
            // What is under way is given up with it; a server of this measurement does it only at
            // its end.
            progress.ended |= streams.going_away;
        }
        Ok(progress)
    }

    /// Record by record, so that none is half in the library when it is to see no more.
    fn take(
        &mut self,
        mut bytes: &[u8],
        progress: &mut Progress,
        done: &mut Vec<Instant>,
    ) -> Result<(), String> {
        while !bytes.is_empty() {
            let (count, plaintext) = self.records.next(bytes);
            let (mut input, rest) = bytes.split_at(count);
            bytes = rest;
            if self.undecrypted.is_some() {
                self.count(plaintext.unwrap_or(0) as u64, progress, done)?;
                continue;
            }
            while !input.is_empty() {
                self.tls
                    .read_tls(&mut input)
                    .map_err(|error| error.to_string())?;
                if input.is_empty() && plaintext.is_none() {
                    // Not the whole record yet.
                    break;
                }
                self.process(progress, done)?;
            }
            if let Exchange::Http1 { reader, .. } = &self.exchange
                && plaintext.is_some()
            {
                self.undecrypted = reader.body_left().filter(|left| *left > UNDECRYPTED);
            }
        }
        Ok(())
    }

    fn count(
        &mut self,
        plaintext: u64,
        progress: &mut Progress,
        done: &mut Vec<Instant>,
    ) -> Result<(), String> {
        let left = self.undecrypted.unwrap_or(0);
        let left = left
            .checked_sub(plaintext)
            .ok_or("more came than was asked for")?;
        progress.body_bytes += plaintext;
        self.undecrypted = Some(left);
        if left == 0 {
            if let Exchange::Http1 { due, .. } = &mut self.exchange {
                done.extend(due.take());
            }
            progress.ended = true;
        }
        Ok(())
    }

    fn process(&mut self, progress: &mut Progress, done: &mut Vec<Instant>) -> Result<(), String> {
        self.tls
            .process_new_packets()
            .map_err(|error| error.to_string())?;
        if !self.established && !self.tls.is_handshaking() {
            progress.established = self.tls.handshake_kind();
            if let Exchange::Http2(_) = self.exchange {
                if self.tls.alpn_protocol() != Some(b"h2") {
                    return Err("the server does not speak h2".to_owned());
                }
                http2::begin(&mut self.output);
            }
            self.established = true;
        }
        let mut reader = self.tls.reader();
        loop {
            let bytes = match reader.fill_buf() {
                Ok([]) => {
                    progress.ended = true;
                    return Ok(());
                }
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.to_string()),
            };
            progress.body_bytes += self.exchange.receive(bytes, &mut self.output, done)?;
            let count = bytes.len();
            reader.consume(count);
        }
    }

    /// Sends what is prepared, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<(), String> {
        if !self.output.is_empty() && self.established {
            self.tls
                .writer()
                .write_all(&self.output)
                .map_err(|error| error.to_string())?;
            self.output.clear();
        }
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::NotConnected
                    ) =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Says goodbye as RFC 8446, section 6.1 wants it.
    pub fn close(mut self: Box<Self>) {
        self.tls.send_close_notify();
        let _ = self.flush();
    }

    pub fn negotiated(&self) -> Negotiated {
        let group = self.tls.negotiated_key_exchange_group();
        let suite = self.tls.negotiated_cipher_suite();
        Negotiated {
            group: group.map_or("?".to_owned(), |group| format!("{:?}", group.name())),
            suite: suite.map_or("?".to_owned(), |suite| format!("{:?}", suite.suite())),
        }
    }
}

impl Exchange {
    fn receive(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        done: &mut Vec<Instant>,
    ) -> Result<u64, String> {
        match self {
            Exchange::Http1 { reader, due } => {
                let (body, complete) = reader.receive(bytes)?;
                if complete {
                    done.push(due.take().ok_or("an answer to nothing")?);
                }
                Ok(body)
            }
            Exchange::Http2(streams) => streams.receive(bytes, out, done),
        }
    }
}

fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
