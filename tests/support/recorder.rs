//! An upstream that reads requests without any leniency, writes down what it saw, and answers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::place::Place;
use super::wire::{Message, Wire};

/// Stopped when dropped.
pub struct Recorder {
    pub addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    raw: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

/// What came on a connection.
#[derive(Clone, Debug)]
pub enum Seen {
    Request(Message),
    /// Nothing that could be understood in one way alone; why.
    Malformed(String),
    /// The connection ended within a request's body.
    Aborted(Message),
}

impl Recorder {
    pub async fn start(place: &Place) -> Recorder {
        let addr = place.free();
        let listener = TcpListener::bind(addr).await.expect("a free address");
        let (seen, raw) = (Arc::default(), Arc::default());
        let (log, bytes) = (Arc::clone(&seen), Arc::clone(&raw));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (log, bytes) = (Arc::clone(&log), Arc::clone(&bytes));
                connections.spawn(serve(Wire::new(stream), log, bytes));
            }
        });
        Recorder {
            addr,
            seen,
            raw,
            task,
        }
    }

    /// The whole requests since the last call, byte for byte.
    pub fn take_raw(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.raw.lock().unwrap())
    }

    /// What was seen since the last call.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Every request is on record before its answer is sent.
async fn serve(
    mut wire: Wire<TcpStream>,
    log: Arc<Mutex<Vec<Seen>>>,
    bytes: Arc<Mutex<Vec<Vec<u8>>>>,
) {
    loop {
        let seen = match wire.request().await {
            Ok(request) if request.cut.is_none() => Seen::Request(request),
            Ok(request) => Seen::Aborted(request),
            Err(why) if why.starts_with("ended early") && why.ends_with("unread: \"\"") => return,
            Err(why) => Seen::Malformed(why),
        };
        let goes_on = matches!(seen, Seen::Request(_));
        if goes_on {
            bytes.lock().unwrap().push(wire.rewind());
        }
        log.lock().unwrap().push(seen);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        if !goes_on || wire.send(answer).await.is_err() {
            return;
        }
    }
}
