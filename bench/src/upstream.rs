//! The upstream behind all servers: HTTP/1.1 with keep-alive and three fixed answers, whose cost
//! is small beside the server's. It reads no more of a request than its path and its end.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::cores::pin;

/// The path of an answer of 100 bytes.
pub const SMALL: &str = "/small";
/// The path of an answer of 1 MiB.
pub const MEBIBYTE: &str = "/1m";
/// The path of an answer of 100 MiB.
pub const HUNDRED_MEBIBYTES: &str = "/100m";

/// The listeners' tokens begin here, far above those of connections.
const LISTENERS: usize = usize::MAX / 2;

/// A body is this, over and over: small enough to stay in a core's cache.
static PORTION: [u8; 128 << 10] = [b'x'; 128 << 10];

/// Starts `threads` threads on some cores, which serve until the process ends.
pub fn start(cores: &[usize], threads: usize) -> SocketAddr {
    start_many(cores, threads, 1)[0]
}

/// The same on `count` loopback addresses, from 127.0.0.1 on, each of them an upstream of its own.
pub fn start_many(cores: &[usize], threads: usize, count: usize) -> Vec<SocketAddr> {
    let mut listeners = vec![listen(0, 0)];
    let first = listeners[0].local_addr().expect("an address");
    listeners.extend((1..count).map(|number| listen(number, first.port())));
    for _ in 0..threads {
        let clone = |listener: &std::net::TcpListener| {
            TcpListener::from_std(listener.try_clone().expect("a descriptor"))
        };
        let listeners = listeners.iter().map(clone).collect();
        let cores = cores.to_vec();
        std::thread::spawn(move || {
            pin(&cores);
            Upstream::new(listeners).serve();
        });
    }
    let address = |listener: &std::net::TcpListener| listener.local_addr().expect("an address");
    listeners.iter().map(address).collect()
}

/// On the loopback address with this number; port 0 is any that is free.
fn listen(number: usize, port: u16) -> std::net::TcpListener {
    let host = u32::from(Ipv4Addr::LOCALHOST) + u32::try_from(number).expect("few");
    let address = SocketAddr::new(Ipv4Addr::from(host).into(), port);
    let listener = std::net::TcpListener::bind(address)
        .unwrap_or_else(|error| panic!("the upstream's {address}: {error}"));
    listener.set_nonblocking(true).expect("a socket option");
    listener
}

struct Upstream {
    poll: Poll,
    listeners: Vec<TcpListener>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    answers: [Answer; 3],
    buffer: Vec<u8>,
}

/// What a path is answered with.
struct Answer {
    path: &'static str,
    /// With the body, where that is small.
    head: Vec<u8>,
    body: usize,
}

impl Answer {
    fn new(path: &'static str, length: usize) -> Answer {
        let mut head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\
             Date: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: {length}\r\n\r\n"
        )
        .into_bytes();
        let is_small = length < PORTION.len();
        if is_small {
            head.extend_from_slice(&PORTION[..length]);
        }
        Answer {
            path,
            head,
            body: if is_small { 0 } else { length },
        }
    }
}

struct Connection {
    stream: TcpStream,
    /// What came of a request whose end is still to come.
    request: Vec<u8>,
    head: Vec<u8>,
    body_left: usize,
}

impl Upstream {
    fn new(mut listeners: Vec<TcpListener>) -> Upstream {
        let poll = Poll::new().expect("epoll");
        for (number, listener) in listeners.iter_mut().enumerate() {
            poll.registry()
                .register(listener, Token(LISTENERS + number), Interest::READABLE)
                .expect("registered");
        }
        Upstream {
            poll,
            listeners,
            connections: Vec::new(),
            free: Vec::new(),
            answers: [
                Answer::new(SMALL, 100),
                Answer::new(MEBIBYTE, 1 << 20),
                Answer::new(HUNDRED_MEBIBYTES, 100 << 20),
            ],
            buffer: vec![0; 16 << 10],
        }
    }

    fn serve(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            if let Err(error) = self.poll.poll(&mut events, None) {
                assert!(error.kind() == ErrorKind::Interrupted, "{error}");
                continue;
            }
            for event in &events {
                match event.token() {
                    Token(token) if token >= LISTENERS => self.accept(token - LISTENERS),
                    Token(index) => self.advance(index),
                }
            }
        }
    }

    fn accept(&mut self, number: usize) {
        while let Ok((mut stream, _)) = self.listeners[number].accept() {
            let _ = stream.set_nodelay(true);
            let index = self.free.pop().unwrap_or(self.connections.len());
            self.poll
                .registry()
                .register(
                    &mut stream,
                    Token(index),
                    Interest::READABLE | Interest::WRITABLE,
                )
                .expect("registered");
            let connection = Connection {
                stream,
                request: Vec::new(),
                head: Vec::new(),
                body_left: 0,
            };
            if index == self.connections.len() {
                self.connections.push(Some(connection));
            } else {
                self.connections[index] = Some(connection);
            }
        }
    }

    fn advance(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        if connection.advance(&mut self.buffer, &self.answers).is_err() {
            self.connections[index] = None;
            self.free.push(index);
        }
    }
}

impl Connection {
    /// Reads and writes what can be; an error is the end of the connection.
    fn advance(&mut self, buffer: &mut [u8], answers: &[Answer]) -> std::io::Result<()> {
        self.write()?;
        loop {
            let count = match self.stream.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.request.extend_from_slice(&buffer[..count]);
            // No proxy here pipelines: what ends in an empty line is one request.
            if self.request.ends_with(b"\r\n\r\n") {
                self.answer(answers);
                self.request.clear();
                self.write()?;
            }
            // A short read has emptied the socket; the next byte is a new event.
            if count < buffer.len() {
                return Ok(());
            }
        }
    }

    /// What is not known gets the first answer.
    fn answer(&mut self, answers: &[Answer]) {
        let path = self.request.strip_prefix(b"GET ").unwrap_or_default();
        let found = answers
            .iter()
            .find(|answer| path.starts_with(answer.path.as_bytes()));
        let answer = found.unwrap_or(&answers[0]);
        self.head.extend_from_slice(&answer.head);
        self.body_left = answer.body;
    }

    fn write(&mut self) -> std::io::Result<()> {
        while !self.head.is_empty() || self.body_left > 0 {
            let in_head = !self.head.is_empty();
            let bytes = if in_head {
                &self.head[..]
            } else {
                &PORTION[..self.body_left.min(PORTION.len())]
            };
            match self.stream.write(bytes) {
                Ok(count) if in_head => drop(self.head.drain(..count)),
                Ok(count) => self.body_left -= count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
