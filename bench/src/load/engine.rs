//! One thread's event loop: it opens connections, hands requests to them at the plan's pace, and
//! counts.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use rustls::HandshakeKind;

use super::connection::{Connection, Scratch};
use super::{Aim, Counters, Outcome, Pace, Plan, Switches};

const TIMER: Token = Token(usize::MAX);
/// How many handshakes a thread has under way at most while it opens connections that stay: a
/// listener's queue is finite.
const OPENING: usize = 64;
/// A server that fails this often is not worth measuring.
const TOO_MANY_ERRORS: u64 = 10_000;

pub struct Engine<'a> {
    plan: &'a Plan,
    counters: &'a Counters,
    switches: &'a Switches,
    poll: Poll,
    connections: Vec<Option<Box<Connection>>>,
    /// Places for connections that are not there: not yet, or no longer.
    vacant: Vec<usize>,
    opening: usize,
    scratch: Scratch,
    schedule: Option<Schedule>,
    random: u64,
    /// How many requests may still be sent.
    left: u64,
    outcome: Outcome,
}

impl<'a> Engine<'a> {
    /// `number` of `count` threads, which share the plan's connections and rate.
    pub fn new(
        plan: &'a Plan,
        (number, count): (usize, usize),
        counters: &'a Counters,
        switches: &'a Switches,
    ) -> Engine<'a> {
        let wanted = plan.connections / count + usize::from(number < plan.connections % count);
        let poll = Poll::new().expect("epoll");
        let schedule = match plan.pace {
            Pace::Open { rate, .. } => Some(Schedule::new(rate / count as f64, &poll)),
            _ => None,
        };
        Engine {
            plan,
            counters,
            switches,
            poll,
            connections: (0..wanted).map(|_| None).collect(),
            vacant: (0..wanted).rev().collect(),
            opening: 0,
            scratch: Scratch::new(),
            schedule,
            random: 0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1),
            left: plan.limit.unwrap_or(u64::MAX),
            outcome: Outcome::default(),
        }
    }

    pub fn run(mut self) -> Outcome {
        let mut events = Events::with_capacity(1024);
        while !self.switches.stop.load(Ordering::Relaxed) {
            while self.opening < OPENING
                && self.left > 0
                && let Some(index) = self.vacant.pop()
            {
                if let Err(error) = self.open(index) {
                    self.fail(index, error);
                }
            }
            // It wakes so often only to see that it is to stop.
            let timeout = Some(Duration::from_millis(20));
            if let Err(error) = self.poll.poll(&mut events, timeout) {
                let interrupted = error.kind() == std::io::ErrorKind::Interrupted;
                assert!(interrupted, "epoll: {error}");
                continue;
            }
            for event in &events {
                match event.token() {
                    TIMER => self.send_due(),
                    Token(index) => self.advance(index),
                }
            }
        }
        self.outcome
    }

    fn open(&mut self, index: usize) -> Result<(), String> {
        self.opening += 1;
        let target = self.random_target();
        let mut connection = Box::new(Connection::open(self.plan, target)?);
        self.poll
            .registry()
            .register(
                &mut connection.stream,
                Token(index),
                Interest::READABLE | Interest::WRITABLE,
            )
            .map_err(|error| error.to_string())?;
        connection.flush()?;
        self.connections[index] = Some(connection);
        Ok(())
    }

    fn random_target(&mut self) -> usize {
        // xorshift64.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % self.plan.targets.len() as u64) as usize
    }

    /// Counts an error and gives the place free; a connection that is still there is dropped.
    fn fail(&mut self, index: usize, error: String) {
        let errors = self.counters.errors.fetch_add(1, Ordering::Relaxed);
        assert!(errors < TOO_MANY_ERRORS, "the server fails: {error}");
        self.outcome.fault.get_or_insert(error);
        let connection = self.connections[index].take();
        if connection.is_none_or(|connection| !connection.is_established()) {
            self.opening -= 1;
        }
        self.vacant.push(index);
    }

    fn advance(&mut self, index: usize) {
        // An event of a connection that has gone since is nobody's.
        let Some(mut connection) = self.connections[index].take() else {
            return;
        };
        let result = self.exchange(index, &mut connection);
        match result {
            Ok(true) => self.connections[index] = Some(connection),
            Ok(false) => {
                connection.close();
                self.vacant.push(index);
            }
            Err(error) => {
                self.connections[index] = Some(connection);
                self.fail(index, error);
            }
        }
    }

    /// Reads, counts, and sends what is next. Returns whether the connection goes on.
    fn exchange(&mut self, index: usize, connection: &mut Connection) -> Result<bool, String> {
        let progress = connection.receive(&mut self.scratch)?;
        let add = |counter: &std::sync::atomic::AtomicU64, count: u64| {
            counter.fetch_add(count, Ordering::Relaxed);
        };
        if let Some(kind) = progress.established {
            self.opening -= 1;
            add(&self.counters.handshakes, 1);
            let resumed = kind == HandshakeKind::Resumed;
            add(&self.counters.resumed, u64::from(resumed));
            if self.outcome.negotiated.is_none() {
                self.outcome.negotiated = Some(connection.negotiated());
            }
            self.begin(index, connection);
        }
        if progress.body_bytes > 0 {
            add(&self.counters.body_bytes, progress.body_bytes);
        }
        let done = self.scratch.done.len() as u64;
        if done > 0 {
            add(&self.counters.requests, done);
            self.answered(index, connection, progress.ended);
            if matches!(self.plan.pace, Pace::Churn) {
                return Ok(false);
            }
        }
        if progress.ended {
            return match connection.pending() {
                0 if connection.is_established() => Ok(false),
                _ => Err("the server closed a connection in use".to_owned()),
            };
        }
        connection.flush()?;
        Ok(true)
    }

    /// The requests with which a connection begins.
    fn begin(&mut self, index: usize, connection: &mut Connection) {
        let now = Instant::now();
        match (self.plan.pace, &mut self.schedule) {
            (Pace::Open { streams, .. }, Some(schedule)) => {
                for _ in 0..streams {
                    schedule.offer(index, connection, &self.plan.targets);
                }
            }
            (Pace::Closed { streams }, _) => {
                for _ in 0..streams {
                    self.request(connection, now);
                }
            }
            _ => self.request(connection, now),
        }
    }

    fn request(&mut self, connection: &mut Connection, now: Instant) {
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            if self.plan.aim == Aim::PerRequest {
                connection.aim_at(self.random_target());
            }
            connection.request(&self.plan.targets, now);
        }
    }

    /// What follows on answers; nothing does on a connection that has ended.
    fn answered(&mut self, index: usize, connection: &mut Connection, ended: bool) {
        let now = Instant::now();
        let recording = self.switches.recording.load(Ordering::Relaxed);
        let mut done = std::mem::take(&mut self.scratch.done);
        for due in done.drain(..) {
            match (self.plan.pace, &mut self.schedule) {
                (Pace::Open { .. }, Some(schedule)) => {
                    if recording {
                        self.outcome.latencies.push(now - due);
                    }
                    if !ended {
                        schedule.offer(index, connection, &self.plan.targets);
                    }
                }
                (Pace::Closed { .. }, _) if !ended => self.request(connection, now),
                _ => {}
            }
        }
        self.scratch.done = done;
    }

    /// Sends what has become due, on the connections that have been idle longest.
    fn send_due(&mut self) {
        let (Some(schedule), Pace::Open { streams, .. }) = (&mut self.schedule, self.plan.pace)
        else {
            return;
        };
        let mut touched = Vec::new();
        for due in schedule.due() {
            let Some(index) = schedule.idle.pop_front() else {
                schedule.waiting.push_back(due);
                continue;
            };
            match &mut self.connections[index] {
                // The one that was idle may have gone, and another come in its place.
                Some(connection) if connection.pending() < streams => {
                    connection.request(&self.plan.targets, due);
                    if touched.last() != Some(&index) {
                        touched.push(index);
                    }
                }
                _ => schedule.waiting.push_back(due),
            }
        }
        for index in touched {
            let Some(connection) = &mut self.connections[index] else {
                continue;
            };
            if let Err(error) = connection.flush() {
                self.fail(index, error);
            }
        }
    }
}

/// Requests at a fixed rate, whoever may be able to take them: one that had to wait counts from
/// when it was due, so that a server that stalls cannot hide it (no coordinated omission).
struct Schedule {
    timer: OwnedFd,
    next: Instant,
    interval: Duration,
    /// Due, but every connection is busy.
    waiting: VecDeque<Instant>,
    /// Connections that can take one more, once for each.
    idle: VecDeque<usize>,
}

impl Schedule {
    fn new(rate: f64, poll: &Poll) -> Schedule {
        let interval = Duration::from_secs_f64(1.0 / rate);
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK).expect("a timer");
        let every = Timespec {
            tv_sec: interval.as_secs() as i64,
            tv_nsec: interval.subsec_nanos().into(),
        };
        let settings = Itimerspec {
            it_interval: every,
            it_value: every,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &settings).expect("a timer");
        poll.registry()
            .register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)
            .expect("registered");
        Schedule {
            timer,
            next: Instant::now() + interval,
            interval,
            waiting: VecDeque::new(),
            idle: VecDeque::new(),
        }
    }

    /// When each request was due that has not been taken yet.
    fn due(&mut self) -> Vec<Instant> {
        // The timer is only what wakes; reading it arms the next event.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        let now = Instant::now();
        let mut due = Vec::new();
        while self.next <= now {
            due.push(self.next);
            self.next += self.interval;
        }
        due
    }

    /// A connection can take one more.
    fn offer(&mut self, index: usize, connection: &mut Connection, targets: &[super::Target]) {
        match self.waiting.pop_front() {
            Some(due) => connection.request(targets, due),
            None => self.idle.push_back(index),
        }
    }
}
