//! Connections to upstreams that speak HTTP/2 (RFC 9113): few for each worker, with many streams
//! each. One that may take no more streams, because it ends or its peer says so, gets none.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use pingora::protocols::ALPN;
use socket2::{SockRef, TcpKeepalive};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::address::{Address, Destination};
use super::connection::Socket;
use super::dial::{self, DialError};
use super::heard::{Heard, Pinger, heard};

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

/// A host that is gone without a word is found out by the kernel; one whose program hangs by pings.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;
const USER_TIMEOUT: Duration = Duration::from_secs(60);

type Sender = SendRequest<Bytes>;

/// What reads and writes the frames of a connection.
pub type Driver = Connection<Heard, Bytes>;

/// A connection that has just been opened.
pub struct Opened {
    pub sender: Sender,
    /// Nothing moves before it is polled.
    pub driver: Driver,
    /// Whether something has come.
    something: Arc<AtomicBool>,
}

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
    /// Milliseconds of silence until its peer is asked whether it is there; 0: it never is.
    ping: AtomicU64,
    /// Somebody wants to know what its peer can do.
    curious: Notify,
    /// Whether what its peer said first has come.
    settled: watch::Sender<bool>,
}

impl State {
    fn set_ping(&self, ping: Option<Duration>) {
        let milliseconds = ping.map_or(0, |ping| ping.as_millis() as u64);
        if self.ping.load(Ordering::Relaxed) != milliseconds {
            self.ping.store(milliseconds, Ordering::Relaxed);
        }
    }

    fn ping(&self) -> Option<Duration> {
        let milliseconds = self.ping.load(Ordering::Relaxed);
        (milliseconds != 0).then(|| Duration::from_millis(milliseconds))
    }
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

    /// Whether the peer takes WebSockets (RFC 8441 section 3). Of a new connection that is known once
    /// the peer has said something, which is waited for within `limit`.
    pub async fn takes_web_sockets(&self, limit: Duration) -> bool {
        if !self.sender.is_extended_connect_protocol_enabled() {
            let mut settled = self.state.settled.subscribe();
            if !*settled.borrow_and_update() {
                self.state.curious.notify_one();
                // That it says nothing is an answer, too.
                let _ = tokio::time::timeout(limit, settled.wait_for(|it| *it)).await;
            }
        }
        self.sender.is_extended_connect_protocol_enabled()
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
    /// `ping`: how long its peer may be silent.
    pub async fn place(
        &self,
        address: &Address,
        limit: Duration,
        ping: Option<Duration>,
    ) -> Result<Place, DialError> {
        let place = self.find(address, limit).await?;
        place.state.set_ping(ping);
        Ok(place)
    }

    async fn find(&self, address: &Address, limit: Duration) -> Result<Place, DialError> {
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
            Ok(opened) => Ok(self.add(address, version, opened)),
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

    fn add(&self, address: &Address, version: u64, opened: Opened) -> Place {
        let open = Open {
            sender: opened.sender.clone(),
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
        // Its last sender ends it: none may be left behind.
        let Opened {
            mut driver,
            something,
            ..
        } = opened;
        let pinger = Pinger::new(driver.ping_pong(), something);
        tokio::spawn(connections.drive(destination, state, driver, pinger));
        place
    }

    /// Moves the frames of one connection until it ends, and takes it away before it does.
    async fn drive(
        self,
        destination: Arc<Destination>,
        state: Arc<State>,
        mut driver: Driver,
        mut pinger: Pinger,
    ) {
        let mut sweep = Box::pin(tokio::time::sleep(sweep_interval(&state)));
        let mut curious = std::pin::pin!(state.curious.notified());
        let mut idle_since = Instant::now();
        let result = poll_fn(|cx| {
            if curious.as_mut().poll(cx).is_ready() {
                curious.set(state.curious.notified());
                pinger.ask(Instant::now());
            }
            while sweep.as_mut().poll(cx).is_ready() {
                let now = Instant::now();
                sweep.as_mut().reset(now + sweep_interval(&state));
                if let Some(limit) = state.ping()
                    && pinger.is_gone(now, limit)
                {
                    return Poll::Ready(Err(Ended::Silent(limit)));
                }
                if state.streams.load(Ordering::Relaxed) > 0 {
                    idle_since = now;
                } else if now - idle_since >= IDLE_TIMEOUT || state.retired.load(Ordering::Relaxed)
                {
                    // With its last sender it ends by itself.
                    self.remove(&destination, &state);
                }
            }
            let ended = Pin::new(&mut driver).poll(cx);
            if pinger.poll_answer(cx) {
                state.settled.send_replace(true);
            }
            ended.map_err(Ended::Failed)
        })
        .await;
        if let Err(error) = result {
            match error {
                Ended::Failed(error) => {
                    tracing::debug!(?destination, %error, "HTTP/2 connection to an upstream");
                }
                Ended::Silent(limit) => tracing::warn!(
                    ?destination,
                    ?limit,
                    "an upstream does not answer a PING: its connection is given up"
                ),
            }
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

/// Why a connection has come to an end that was not wanted.
enum Ended {
    Failed(h2::Error),
    Silent(Duration),
}

/// How often is looked at a connection: often enough to see that its peer has been silent.
fn sweep_interval(state: &State) -> Duration {
    let ping = state.ping().map(|ping| ping / 3);
    ping.map_or(SWEEP_INTERVAL, |ping| ping.min(SWEEP_INTERVAL))
}

/// A new connection, within `limit`.
pub async fn open(address: &Address, limit: Duration) -> Result<Opened, DialError> {
    let socket = dial::socket(address, limit).await?;
    match &socket {
        Socket::Tcp(stream) => keep_alive(&SockRef::from(stream)),
        Socket::Tls(stream) if stream.selected_alpn_proto() != Some(ALPN::H2) => {
            let reason = "it does not speak HTTP/2: its TLS agrees to another protocol, or to none";
            return Err(DialError::unfit(reason.to_owned()));
        }
        Socket::Tls(_) | Socket::Unix(_) | Socket::Stream(_) => {}
    }
    let (socket, something) = heard(socket);
    let handshake = settings().handshake(socket);
    match tokio::time::timeout(limit, handshake).await {
        Ok(Ok((sender, driver))) => Ok(Opened {
            sender,
            driver,
            something,
        }),
        Ok(Err(error)) => Err(DialError::unfit(format!("HTTP/2 failed: {error}"))),
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
