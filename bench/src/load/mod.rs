//! The load: one thread and one event loop a core, prepared requests, and no more of an answer
//! read than shows its status and its end. What it costs has to stay below what the server costs.

mod connection;
mod engine;
mod http1;
mod http2;
mod records;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::ClientConfig;

pub use connection::Negotiated;
use engine::Engine;
pub use http2::Blocks;

use crate::cores::pin;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Each answer brings the next request; so many are under way on each connection.
    Closed { streams: usize },
    /// One request a connection, then a new connection in its place.
    Churn,
    /// So many a second whether or not answers come; latency counts from when one was due.
    Open { rate: f64, streams: usize },
    /// Each connection sends one request and stays.
    Hold,
}

/// For which of its targets a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// One at random for each connection.
    PerConnection,
    /// One at random for each request, whatever name the connection was opened for; HTTP/1.1 alone,
    /// since the prepared blocks of HTTP/2 hold for one name a connection.
    PerRequest,
}

/// A name to ask for, with the requests prepared.
pub struct Target {
    server_name: rustls::pki_types::ServerName<'static>,
    request: Vec<u8>,
    blocks: Blocks,
}

impl Target {
    pub fn new(name: &str, path: &str) -> Target {
        Target {
            server_name: name.to_owned().try_into().expect("a name"),
            request: http1::request(name, path),
            blocks: Blocks::new(name, path),
        }
    }
}

/// What the client is to do, over all of its threads.
pub struct Plan {
    pub address: SocketAddr,
    pub tls: Arc<ClientConfig>,
    pub targets: Arc<[Target]>,
    pub aim: Aim,
    pub protocol: Protocol,
    pub connections: usize,
    pub pace: Pace,
    /// How many requests are sent in all, where not for ever; for one core and a closed pace or a
    /// churn alone.
    pub limit: Option<u64>,
}

/// What happened so far.
#[derive(Default)]
pub struct Counters {
    pub requests: AtomicU64,
    pub handshakes: AtomicU64,
    pub resumed: AtomicU64,
    pub body_bytes: AtomicU64,
    pub errors: AtomicU64,
}

impl Counters {
    pub fn read(&self) -> Counts {
        let [requests, handshakes, resumed, body_bytes, errors] = [
            &self.requests,
            &self.handshakes,
            &self.resumed,
            &self.body_bytes,
            &self.errors,
        ]
        .map(|counter| counter.load(Ordering::Relaxed));
        Counts {
            requests,
            handshakes,
            resumed,
            body_bytes,
            errors,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub requests: u64,
    pub handshakes: u64,
    pub resumed: u64,
    pub body_bytes: u64,
    pub errors: u64,
}

impl std::ops::Sub for Counts {
    type Output = Counts;

    fn sub(self, before: Counts) -> Counts {
        Counts {
            requests: self.requests - before.requests,
            handshakes: self.handshakes - before.handshakes,
            resumed: self.resumed - before.resumed,
            body_bytes: self.body_bytes - before.body_bytes,
            errors: self.errors - before.errors,
        }
    }
}

#[derive(Default)]
struct Switches {
    stop: AtomicBool,
    recording: AtomicBool,
}

/// What one thread brings back.
#[derive(Default)]
pub struct Outcome {
    /// Of requests that were due while recording; for an open pace alone.
    pub latencies: Vec<Duration>,
    pub negotiated: Option<Negotiated>,
    /// The first thing that went wrong.
    pub fault: Option<String>,
}

/// A load under way.
pub struct Load {
    counters: Arc<Counters>,
    switches: Arc<Switches>,
    threads: Vec<JoinHandle<Outcome>>,
}

impl Load {
    /// Starts one thread a core.
    pub fn start(plan: Plan, cores: &[usize]) -> Load {
        let plan = Arc::new(plan);
        let counters = Arc::new(Counters::default());
        let switches = Arc::new(Switches::default());
        let count = cores.len().min(plan.connections);
        let thread = |number| {
            let (plan, counters, switches) = (plan.clone(), counters.clone(), switches.clone());
            let cores = cores.to_vec();
            std::thread::spawn(move || {
                pin(&cores);
                Engine::new(&plan, (number, count), &counters, &switches).run()
            })
        };
        let threads = (0..count).map(thread).collect();
        Load {
            counters,
            switches,
            threads,
        }
    }

    pub fn counts(&self) -> Counts {
        self.counters.read()
    }

    /// From now on latencies are kept.
    pub fn record(&self) {
        self.switches.recording.store(true, Ordering::Relaxed);
    }

    /// Ends the load and drops its connections.
    pub fn stop(self) -> Outcome {
        self.switches.stop.store(true, Ordering::Relaxed);
        let mut all = Outcome::default();
        for thread in self.threads {
            let outcome = thread.join().expect("no panic");
            all.latencies.extend(outcome.latencies);
            all.negotiated = all.negotiated.or(outcome.negotiated);
            all.fault = all.fault.or(outcome.fault);
        }
        all
    }
}
