//! Connections to upstreams that speak HTTP/2 (RFC 9113): few for each worker, with many streams
//! each. One that may take no more streams, because it ends or its peer says so, gets none.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use pingora::protocols::ALPN;
use socket2::{SockRef, TcpKeepalive};
use tokio::time::Instant;

use super::address::{Address, Destination};
use super::connection::Socket;
use super::dial::{self, DialError};

/// Streams at once on one connection, where its peer would take more: what most servers take.
const MAX_STREAMS: usize = 100;

/// What an upstream may send of a body before we have said that the client took any.
const STREAM_WINDOW: u32 = 256 * 1024;

/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// What a stream holds for an upstream that does not take it.
const SEND_BUFFER: usize = 64 * 1024;

/// The header list of a response, as HTTP/2 counts it.
const MAX_HEADER_BYTES: u32 = 96 * 1024;

/// How long a connection without a stream stays open.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often that is looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// A peer that is gone without a word is found out by the kernel: pings of HTTP/2 would do, too, but
/// servers of gRPC end connections that send too many.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;
const USER_TIMEOUT: Duration = Duration::from_secs(60);

type Sender = SendRequest<Bytes>;

/// What reads and writes the frames of a connection.
pub type Driver = Connection<Socket, Bytes>;

/// The connections of one worker. Clones share them.
#[derive(Clone, Default)]
pub struct Multiplexed(Arc<Mutex<HashMap<Arc<Destination>, Slot>>>);

#[derive(Default)]
struct Slot {
    open: Vec<Open>,
    dialling: Arc<Dialling>,
}

/// One dial at a time: what waits for it shares what comes of it.
#[derive(Default)]
struct Dialling {
    turn: tokio::sync::Mutex<()>,
    failures: AtomicU64,
    last: Mutex<Option<DialError>>,
}

struct Open {
    sender: Sender,
    /// Of what it was made under.
    version: u64,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    streams: AtomicUsize,
    /// Whether it gets no more streams.
    retired: AtomicBool,
}

/// A place for one stream, which counts until this is dropped.
pub struct Place {
    pub sender: Sender,
    /// Whether the connection has had a stream before.
    pub reused: bool,
    state: Arc<State>,
}

impl Place {
    fn new(open: &Open, reused: bool) -> Place {
        open.state.streams.fetch_add(1, Ordering::Relaxed);
        Place {
            sender: open.sender.clone(),
            reused,
            state: open.state.clone(),
        }
    }

    /// No more streams on this connection.
    pub fn retire(&self) {
        self.state.retired.store(true, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.state.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Open {
    fn has_room(&self, version: u64) -> bool {
        let most = self.sender.current_max_send_streams().min(MAX_STREAMS);
        self.version == version
            && !self.state.retired.load(Ordering::Relaxed)
            && self.state.streams.load(Ordering::Relaxed) < most
    }
}

impl Multiplexed {
    /// A place on a connection to this address; on a new one where there is none, within `limit`.
    pub async fn place(&self, address: &Address, limit: Duration) -> Result<Place, DialError> {
        if let Some(place) = self.take(address) {
            return Ok(place);
        }
        let dialling = {
            let mut slots = self.slots();
            let slot = slots.entry(address.destination().clone()).or_default();
            slot.dialling.clone()
        };
        let failures = dialling.failures.load(Ordering::Relaxed);
        let _turn = dialling.turn.lock().await;
        if let Some(place) = self.take(address) {
            return Ok(place);
        }
        if dialling.failures.load(Ordering::Relaxed) != failures
            && let Some(error) = dialling.last().clone()
        {
            return Err(error);
        }
        let version = address.version();
        match open(address, limit).await {
            Ok((sender, driver)) => Ok(self.add(address, version, sender, driver)),
            Err(error) => {
                *dialling.last() = Some(error.clone());
                dialling.failures.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    fn take(&self, address: &Address) -> Option<Place> {
        let version = address.version();
        let slots = self.slots();
        let mut open = slots.get(address.destination())?.open.iter();
        let open = open.find(|open| open.has_room(version))?;
        Some(Place::new(open, true))
    }

    fn add(&self, address: &Address, version: u64, sender: Sender, driver: Driver) -> Place {
        let open = Open {
            sender,
            version,
            state: Arc::default(),
        };
        let place = Place::new(&open, false);
        let (connections, destination) = (self.clone(), address.destination().clone());
        let state = open.state.clone();
        let mut slots = self.slots();
        slots
            .entry(destination.clone())
            .or_default()
            .open
            .push(open);
        drop(slots);
        tokio::spawn(connections.drive(destination, state, driver));
        place
    }

    /// Moves the frames of one connection until it ends, and takes it away before it does.
    async fn drive(self, destination: Arc<Destination>, state: Arc<State>, mut driver: Driver) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        let mut idle_since = Instant::now();
        let result = poll_fn(|cx| {
            while sweep.poll_tick(cx).is_ready() {
                let now = Instant::now();
                if state.streams.load(Ordering::Relaxed) > 0 {
                    idle_since = now;
                } else if now - idle_since >= IDLE_TIMEOUT || state.retired.load(Ordering::Relaxed)
                {
                    // With its last sender it ends by itself.
                    self.remove(&destination, &state);
                }
            }
            Pin::new(&mut driver).poll(cx)
        })
        .await;
        if let Err(error) = result {
            tracing::debug!(?destination, %error, "HTTP/2 connection to an upstream");
        }
        self.remove(&destination, &state);
    }

    fn remove(&self, destination: &Arc<Destination>, state: &Arc<State>) {
        state.retired.store(true, Ordering::Relaxed);
        let mut slots = self.slots();
        if let Some(slot) = slots.get_mut(destination) {
            slot.open.retain(|open| !Arc::ptr_eq(&open.state, state));
            if slot.open.is_empty() && Arc::strong_count(&slot.dialling) == 1 {
                slots.remove(destination);
            }
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Arc<Destination>, Slot>> {
        // Every change is whole: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dialling {
    fn last(&self) -> MutexGuard<'_, Option<DialError>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A new connection, within `limit`. Nothing moves on it before the second part is polled.
pub async fn open(address: &Address, limit: Duration) -> Result<(Sender, Driver), DialError> {
    let socket = dial::socket(address, limit).await?;
    match &socket {
        Socket::Tcp(stream) => keep_alive(&SockRef::from(stream)),
        Socket::Tls(stream) if stream.selected_alpn_proto() != Some(ALPN::H2) => {
            let reason = "it does not speak HTTP/2: its TLS agrees to another protocol, or to none";
            return Err(DialError::unfit(reason.to_owned()));
        }
        Socket::Tls(_) | Socket::Unix(_) => {}
    }
    let handshake = settings().handshake(socket);
    match tokio::time::timeout(limit, handshake).await {
        Ok(opened) => opened.map_err(|error| DialError::unfit(format!("HTTP/2 failed: {error}"))),
        Err(_) => Err(DialError::timeout(limit)),
    }
}

/// What fails here is a socket option that the kernel does not have: it goes without.
fn keep_alive(socket: &SockRef<'_>) {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_COUNT);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
}

/// The same for connections that Pingora makes.
pub fn keep_alive_of_tls() -> pingora::protocols::TcpKeepalive {
    pingora::protocols::TcpKeepalive {
        idle: KEEPALIVE_IDLE,
        interval: KEEPALIVE_INTERVAL,
        count: KEEPALIVE_COUNT as usize,
        #[cfg(target_os = "linux")]
        user_timeout: USER_TIMEOUT,
    }
}

fn settings() -> Builder {
    let mut settings = Builder::new();
    settings
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_send_buffer_size(SEND_BUFFER);
    settings
}
