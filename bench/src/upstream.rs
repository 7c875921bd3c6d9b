//! The upstream behind all servers: HTTP/1.1 with keep-alive and three fixed answers, whose cost
//! is small beside the server's. It reads no more of a request than its path and its end.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::cores::pin;

/// The path of an answer of 100 bytes.
pub const SMALL: &str = "/small";
/// The path of an answer of 1 MiB.
pub const MEBIBYTE: &str = "/1m";
/// The path of an answer of 100 MiB.
pub const HUNDRED_MEBIBYTES: &str = "/100m";

const LISTENER: Token = Token(usize::MAX);

/// Starts `threads` threads on some cores, which serve until the process ends.
pub fn start(cores: &[usize], threads: usize) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket option");
    let address = listener.local_addr().expect("an address");
    let body: Arc<[u8]> = vec![b'x'; 1 << 20].into();
    for _ in 0..threads {
        let listener = TcpListener::from_std(listener.try_clone().expect("a descriptor"));
        let (cores, body) = (cores.to_vec(), body.clone());
        std::thread::spawn(move || {
            pin(&cores);
            Upstream::new(listener, body).serve();
        });
    }
    address
}

struct Upstream {
    poll: Poll,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    body: Arc<[u8]>,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// What came of a request whose end is still to come.
    request: Vec<u8>,
    head: Vec<u8>,
    body_left: usize,
}

impl Upstream {
    fn new(mut listener: TcpListener, body: Arc<[u8]>) -> Upstream {
        let poll = Poll::new().expect("epoll");
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)
            .expect("registered");
        Upstream {
            poll,
            listener,
            connections: Vec::new(),
            free: Vec::new(),
            body,
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
                    LISTENER => self.accept(),
                    Token(index) => self.advance(index),
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((mut stream, _)) = self.listener.accept() {
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
        if connection.advance(&mut self.buffer, &self.body).is_err() {
            self.connections[index] = None;
            self.free.push(index);
        }
    }
}

impl Connection {
    /// Reads and writes what can be; an error is the end of the connection.
    fn advance(&mut self, buffer: &mut [u8], body: &[u8]) -> std::io::Result<()> {
        self.write(body)?;
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
                self.answer(body.len());
                self.request.clear();
                self.write(body)?;
            }
            // A short read has emptied the socket; the next byte is a new event.
            if count < buffer.len() {
                return Ok(());
            }
        }
    }

    fn answer(&mut self, mebibyte: usize) {
        let asks_for = |path: &str| {
            let rest = self.request.strip_prefix(b"GET ");
            rest.is_some_and(|rest| rest.starts_with(path.as_bytes()))
        };
        let length = if asks_for(MEBIBYTE) {
            mebibyte
        } else if asks_for(HUNDRED_MEBIBYTES) {
            100 * mebibyte
        } else {
            100
        };
        self.head.extend_from_slice(
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\
                 Date: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: {length}\r\n\r\n"
            )
            .as_bytes(),
        );
        if length <= 100 {
            self.head.extend_from_slice(&[b'x'; 100][..length]);
        } else {
            self.body_left = length;
        }
    }

    fn write(&mut self, body: &[u8]) -> std::io::Result<()> {
        while !self.head.is_empty() || self.body_left > 0 {
            let in_head = !self.head.is_empty();
            let bytes = if in_head {
                &self.head[..]
            } else {
                &body[..self.body_left.min(body.len())]
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
