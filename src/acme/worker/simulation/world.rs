//! The host and its worker: events happen in the order of true time, and the desk sees what the
//! host's clock shows.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::ca::{Answer, Ca, DUPLICATES, FAILURES, NEW_ORDERS};
use super::faults::{self, Event, Timeline};
use crate::acme::account::Authority;
use crate::acme::error::{AcmeError, Class, Held, LastError};
use crate::acme::history::{History, Reservation, Steady};
use crate::acme::ledger::{self, AttemptId, Ledger, Outcome, StoredRenewalInfo};
use crate::acme::limits::{self, Broken};
use crate::acme::order::{FETCHED_LIFETIME, PENDING_LIFETIME, Unfinished};
use crate::acme::renewal::{IssuerKind, SuggestedWindow};
use crate::acme::renewal_info;
use crate::acme::subject::Subject;
use crate::acme::surroundings::{Coverage, Surroundings};
use crate::acme::worker::desk::{Desk, Start, Work};
use crate::acme::worker::entry::Entry;
use crate::certificate::name::Name;
use crate::clock::Uptime;
use crate::config::{CertificateAuthority, ChallengeType, KeyType, Limit, Limits};
use crate::store::StateDir;
use crate::store::generation::{Meta, Source, StoredCertificate};
use crate::store::leaf::Leaf;

pub(super) const START: OffsetDateTime = datetime!(2026-11-26 0:00 UTC);
const URL: &str = "https://ca.test/directory";
/// A CA dates certificates back, for clients whose clocks are slow.
const BACKDATED: Duration = Duration::hours(1);
/// Requests of one order, each of which may meet a refused nonce.
const REQUESTS: u32 = 9;
const REFUSED_NONCES: f64 = 0.2;
/// Of a CA that forgets them.
const FORGOTTEN_NONCES: f64 = 0.97;
/// As many tries as a request has.
const NONCE_TRIES: u32 = 30;
const SERVER_ERRORS: f64 = 0.02;

/// Which certificates the CA issues.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) lifetime: Duration,
    pub(super) renewal_info: bool,
}

/// A certificate, by true time.
#[derive(Clone, Copy)]
struct Certificate {
    serial: u64,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    issued_at_clock: OffsetDateTime,
}

/// Requests of each kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) sessions: u32,
    pub(super) questions: u32,
    pub(super) orders: u32,
    pub(super) orders_for_one: usize,
    pub(super) issued: u64,
}

/// One name and all that the world remembers of it.
struct Site {
    name: Name,
    dir: PathBuf,
    ledger: Arc<Ledger>,
    held: Option<Certificate>,
    pending: Option<Pending>,
    /// The latest certificates that count, as many as the CA's limit looks at.
    counted: VecDeque<Noted>,
    is_broken: bool,
    is_useless: bool,
    recalled_serial: Option<u64>,
    /// Since when nothing but our own patience has kept it from being ordered.
    free_since: Since,
    attempts: VecDeque<OffsetDateTime>,
    issued: VecDeque<OffsetDateTime>,
    most_attempts: usize,
    most_issued: usize,
}

impl Site {
    /// As [`order::unfinished`](crate::acme::order::unfinished).
    fn unfinished(&self) -> Option<Unfinished> {
        let number = self.pending?.event;
        let ca = URL.to_owned();
        Some(Unfinished { ca, number })
    }
}

/// A moment, and how many places of the CA's limit of new orders were taken then, or could have
/// been as far as the host can know.
#[derive(Clone, Copy)]
struct Since {
    at: OffsetDateTime,
    taken: usize,
}

impl Since {
    const START: Since = Since {
        at: START,
        taken: 0,
    };
}

/// An order that is on disk, and that the CA has.
#[derive(Clone, Copy)]
struct Pending {
    /// Its number in the history.
    event: u64,
    /// By the host's clock.
    created_at: OffsetDateTime,
    /// Whether it counts nothing at the CA.
    exempt: bool,
    /// That is there, and that this clock takes for expired.
    certificate: Option<Certificate>,
}

/// What the host has noted, and when that truly was.
struct Noted {
    truly: OffsetDateTime,
    noted: OffsetDateTime,
    boot: u64,
    /// When another start of the host was the first to find `noted` in the future.
    seen: Option<OffsetDateTime>,
}

impl Noted {
    /// The host goes down: what was noted has been dated by this clock, if it was looked at since.
    fn is_left(&mut self, offset: Duration) {
        self.noted = self.noted.max(self.truly + offset);
    }

    /// A host that was started since reads it. By a clock that is ahead it learns nothing.
    fn is_read(&mut self, boot: u64, now: OffsetDateTime, clock: OffsetDateTime) {
        if self.boot != boot && self.noted > clock && clock <= now {
            self.seen = self.seen.or(Some(now));
        }
    }

    /// When it was, for all that a host can know whose clock is right now.
    fn looks(&self, boot: u64, now: OffsetDateTime) -> OffsetDateTime {
        match self.seen {
            _ if self.boot == boot => self.truly,
            Some(seen) if self.noted > now => seen,
            _ => self.noted.min(now),
        }
    }

    /// Whether it was not just now, but looks like that.
    fn looks_recent(&self, boot: u64, now: OffsetDateTime) -> bool {
        let recent = |at| now - at < NEW_ORDERS.1;
        !recent(self.truly) && recent(self.looks(boot, now))
    }
}

/// What runs beside the desk.
struct Job {
    start: Start,
    attempt: Option<AttemptId>,
    ends: Ends,
}

enum Ends {
    NoSession(AcmeError),
    /// The CA did not answer a new order.
    Unanswered {
        event: u64,
    },
    /// By the CA.
    Refused {
        event: u64,
        until: OffsetDateTime,
    },
    /// By our own count.
    Held {
        until: OffsetDateTime,
    },
    Order(Pending),
    Question,
}

pub(super) struct World {
    rng: StdRng,
    kind: Kind,
    /// True time, and what the clock shows more.
    now: OffsetDateTime,
    offset: Duration,
    /// The host's starts, and the last of them.
    boot: u64,
    booted_at: OffsetDateTime,
    uptime: Arc<Mutex<Option<Uptime>>>,
    misdated: Vec<Noted>,
    sites: Vec<Site>,
    ca: Ca,
    authority: Arc<Authority>,
    /// `None` while the process is dead.
    desk: Option<Desk>,
    starts_at: Option<OffsetDateTime>,
    is_suspended: bool,
    jobs: BTreeMap<(OffsetDateTime, u64), (usize, Job)>,
    next_job: u64,
    /// Whether the CA has answered since the last failure or start.
    has_session: bool,
    session_error: Option<(OffsetDateTime, AcmeError)>,
    limited_in_a_row: u32,
    timeline: Timeline,
    /// Since when everything that all names need has been there.
    free_since: Option<Since>,
    serials: u64,
    /// Orders of the time that the CA's limit looks back over which the host has lost count of: it
    /// was started anew, and its clock was wrong when it noted them or when it looked.
    lost_count: u32,
    sessions: u32,
    questions: u32,
    orders: u32,
    /// To go on with orders, and the nonces that were refused for them.
    requests: u64,
    refused_nonces: u64,
    expired: Duration,
    state: StateDir,
    _directory: tempfile::TempDir,
}

impl World {
    pub(super) fn new(seed: u64, names: usize, kind: Kind) -> World {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let limit = |(count, per): (u32, Duration)| {
            Some(Limit {
                count,
                per: per.try_into().unwrap(),
            })
        };
        let mut config = CertificateAuthority::lets_encrypt();
        config.set_directory(URL).unwrap();
        config.limits = Limits {
            new_orders: limit(NEW_ORDERS),
            duplicate_certificates: limit(DUPLICATES),
            failed_validations: limit(FAILURES),
            ..Limits::default()
        };
        let uptime = Arc::default();
        let steady = Steady::Simulated(Arc::clone(&uptime));
        let ledger = Arc::new(Ledger::in_memory());
        let history = Arc::new(History::simulated(steady));
        let authority = Authority::with_records(&state, config, ledger, history);
        let site = |number: usize| Site {
            name: format!("n{number}.test").parse().unwrap(),
            dir: PathBuf::from(format!("/certificates/n{number}.test")),
            ledger: Arc::new(Ledger::in_memory()),
            held: None,
            pending: None,
            counted: VecDeque::new(),
            is_broken: false,
            is_useless: false,
            recalled_serial: None,
            free_since: Since::START,
            attempts: VecDeque::new(),
            issued: VecDeque::new(),
            most_attempts: 0,
            most_issued: 0,
        };
        World {
            rng: StdRng::seed_from_u64(seed),
            kind,
            now: START,
            offset: Duration::ZERO,
            boot: 0,
            booted_at: START,
            uptime,
            misdated: Vec::new(),
            sites: (0..names).map(site).collect(),
            ca: Ca::default(),
            authority: Arc::new(authority),
            desk: None,
            starts_at: Some(START),
            is_suspended: false,
            jobs: BTreeMap::new(),
            next_job: 0,
            has_session: false,
            session_error: None,
            limited_in_a_row: 0,
            timeline: Timeline::new(),
            free_since: None,
            serials: 0,
            lost_count: 0,
            sessions: 0,
            questions: 0,
            orders: 0,
            requests: 0,
            refused_nonces: 0,
            expired: Duration::ZERO,
            state,
            _directory: directory,
        }
    }

    /// Lets so much time pass, with everything that can go wrong in it.
    pub(super) fn run(&mut self, span: Duration) {
        let names = self.sites.len();
        let timeline = faults::draw(&mut self.rng, START, span, names);
        self.run_through(timeline, span);
    }

    /// Lets so much time pass, and this happen.
    pub(super) fn run_through(&mut self, timeline: Timeline, span: Duration) {
        self.timeline = timeline;
        let end = START + span;
        while let Some(next) = self.next().filter(|next| *next < end) {
            self.now = whole(next).max(self.now);
            self.step();
        }
        self.now = end;
    }

    /// What was sent so far.
    pub(super) fn sent(&self) -> Sent {
        let attempts = self.sites.iter().map(|site| site.most_attempts);
        Sent {
            sessions: self.sessions,
            questions: self.questions,
            orders: self.orders,
            orders_for_one: attempts.max().unwrap_or(0),
            issued: self.serials,
        }
    }

    fn clock(&self) -> OffsetDateTime {
        self.now + self.offset
    }

    /// When anything happens next, by true time.
    fn next(&self) -> Option<OffsetDateTime> {
        let event = self.timeline.first_key_value().map(|((at, _), _)| *at);
        if self.is_suspended {
            return event;
        }
        let job = self.jobs.first_key_value().map(|((at, _), _)| *at);
        let wake = self
            .desk
            .as_ref()
            .and_then(|desk| desk.wake_at(self.clock()));
        let wake = wake.map(|at| at - self.offset);
        let each = [event, job, wake, self.starts_at];
        each.into_iter().flatten().min()
    }

    fn step(&mut self) {
        self.set_uptime();
        while let Some(event) = self.timeline.first_entry()
            && event.key().0 <= self.now
        {
            let event = event.remove();
            self.happens(event);
        }
        if self.is_suspended {
            return;
        }
        if self.starts_at.is_some_and(|at| at <= self.now) {
            self.starts_at = None;
            self.start();
        }
        while let Some(job) = self.jobs.first_entry()
            && job.key().0 <= self.now
        {
            let (site, job) = job.remove();
            self.ends(site, job);
        }
        let now = self.clock();
        if let Some(desk) = &mut self.desk {
            self.authority.history.date(now).unwrap();
            for start in desk.turn(now) {
                self.begins(start);
            }
        }
    }

    fn set_uptime(&self) {
        let milliseconds = (self.now - self.booted_at).whole_milliseconds();
        *self.uptime.lock().unwrap() = Some(Uptime {
            boot: self.boot,
            milliseconds: milliseconds.try_into().unwrap(),
        });
    }

    fn has_right_clock(&self) -> bool {
        self.offset.abs() <= Duration::MINUTE
    }

    fn since(&self, at: OffsetDateTime) -> Since {
        let misdated = self.misdated.iter();
        let undated = misdated.filter(|it| it.looks_recent(self.boot, at));
        let taken = self.ca.taken(at) + undated.count();
        Since { at, taken }
    }

    /// The process starts: everything is read again.
    fn start(&mut self) {
        let surroundings = Surroundings {
            coverage: Arc::new(|_| Coverage {
                loaded: true,
                ..Coverage::default()
            }),
            may_renew: Arc::new(|_| Box::pin(std::future::ready(Ok(())))),
            asked: Arc::new(|_| None),
            reload_hint: Arc::new(|_| {}),
            ordered: Arc::new(|_, _| {}),
            swaps: None,
        };
        let (ledger, history) = (&self.authority.ledger, &self.authority.history);
        history.reopen(self.clock(), limits::memory(&self.authority.config.limits));
        let (boot, now, clock) = (self.boot, self.now, self.clock());
        let counted = self.sites.iter_mut().flat_map(|site| &mut site.counted);
        for it in self.misdated.iter_mut().chain(counted) {
            it.is_read(boot, now, clock);
        }
        self.authority = Arc::new(Authority::with_records(
            &self.state,
            self.authority.config.clone(),
            Arc::clone(ledger),
            Arc::clone(history),
        ));
        let mut desk = Desk::new(surroundings, Default::default(), Default::default());
        desk.is_writer = true;
        desk.set_authorities(vec![Arc::clone(&self.authority)]);
        for site in &self.sites {
            let subject = Subject {
                name: site.name.clone(),
                names: vec![site.name.clone()],
                issuer: IssuerKind::Acme,
                auto: false,
                takeover: None,
                only_takeover: false,
                key_type: KeyType::P256,
                wildcards: false,
            };
            let mut entry = Entry::new(subject, site.dir.clone(), None);
            entry.ledger = Some(Arc::clone(&site.ledger));
            entry.unfinished = site.unfinished();
            if let Some(held) = &site.held {
                hold(&mut entry, site, held);
            }
            desk.add(entry);
        }
        self.desk = Some(desk);
        self.has_session = false;
        self.availability_changed();
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::CaDown => self.ca.is_down = true,
            Event::CaUp => self.ca.is_down = false,
            Event::NoncesForgotten => self.ca.forgets_nonces = true,
            Event::NoncesKnown => self.ca.forgets_nonces = false,
            Event::Crash { back_in } => return self.crash(back_in),
            Event::Reboot { back_in } => return self.reboot(back_in),
            Event::Restart => return self.restart(),
            Event::Suspend => self.is_suspended = true,
            Event::Resume => self.is_suspended = false,
            Event::Clock { offset } => {
                self.offset = Duration::milliseconds(offset.whole_milliseconds() as i64);
            }
            Event::Broken(site) => {
                self.look_at(site);
                self.sites[site].is_broken = true;
            }
            Event::Mended(site) => {
                self.sites[site].is_broken = false;
                self.sites[site].free_since = self.since(self.now);
            }
            Event::Useless(site) => {
                self.look_at(site);
                self.sites[site].is_useless = true;
            }
            Event::Useful(site) => {
                self.sites[site].is_useless = false;
                self.sites[site].free_since = self.since(self.now);
            }
            Event::Recalled(site) => {
                self.sites[site].recalled_serial = self.sites[site].held.map(|held| held.serial);
            }
        }
        self.availability_changed();
    }

    /// `kill -9`: what runs stops where it is, which no record says.
    fn crash(&mut self, back_in: Duration) {
        for (_, (site, job)) in std::mem::take(&mut self.jobs) {
            self.interrupted(site, job);
        }
        for site in &self.sites {
            site.ledger.crash();
        }
        self.authority.ledger.crash();
        self.desk = None;
        self.starts_at = Some(self.now + back_in);
        self.availability_changed();
    }

    fn reboot(&mut self, back_in: Duration) {
        self.is_suspended = false;
        let misdated = self.misdated.iter().filter(|it| it.boot == self.boot);
        let lost = match self.has_right_clock() {
            true => misdated.count(),
            false => self.ca.taken(self.now),
        };
        self.lost_count += u32::try_from(lost).unwrap();
        self.leave_notes();
        (self.boot, self.booted_at) = (self.boot + 1, self.now);
        self.set_uptime();
        self.crash(back_in);
    }

    /// What this start of the host has noted is left to the next.
    fn leave_notes(&mut self) {
        let (boot, now, offset) = (self.boot, self.now, self.offset);
        self.misdated
            .retain(|it| now - it.truly < Duration::days(30));
        if !self.has_right_clock() {
            let recent = self
                .ca
                .orders_since(now - NEW_ORDERS.1 - offset.max(Duration::ZERO));
            self.misdated.extend(recent.map(|truly| Noted {
                truly,
                noted: truly + offset,
                boot,
                seen: None,
            }));
        }
        let counted = self.sites.iter_mut().flat_map(|site| &mut site.counted);
        for it in counted.filter(|it| it.boot == boot) {
            it.is_left(offset);
        }
    }

    fn restart(&mut self) {
        let now = self.clock();
        for (_, (site, job)) in std::mem::take(&mut self.jobs) {
            self.interrupted(site, job);
        }
        for site in &self.sites {
            site.ledger.cancel_running(now).unwrap();
        }
        self.authority.ledger.cancel_running(now).unwrap();
        self.desk = None;
        self.starts_at = Some(self.now);
        self.availability_changed();
    }

    /// An order that stops in the middle: most often its URL is on disk, and the next one goes on
    /// with it.
    fn interrupted(&mut self, site: usize, job: Job) {
        if let Ends::Order(pending) = job.ends {
            let is_known = self.sites[site].pending.is_some();
            let on_disk = is_known || self.rng.random_bool(0.8);
            self.keep_order(site, Some(pending).filter(|_| on_disk));
        }
    }

    /// The order is on disk.
    fn keep_order(&mut self, site: usize, pending: Option<Pending>) {
        self.sites[site].pending = pending;
        if let Some(pending) = pending {
            let history = &self.authority.history;
            history.placed(pending.event, "an order").unwrap();
        }
    }

    /// Whether nothing stands in the way of any order.
    fn is_free(&self) -> bool {
        let awake = !self.is_suspended && self.desk.is_some();
        let answers = !self.ca.is_down && !self.ca.forgets_nonces;
        awake && answers && self.offset == Duration::ZERO
    }

    fn availability_changed(&mut self) {
        match (self.free_since, self.is_free()) {
            (None, true) => self.free_since = Some(self.since(self.now)),
            (Some(_), false) => {
                for site in 0..self.sites.len() {
                    self.look_at(site);
                }
                self.free_since = None;
            }
            _ => {}
        }
    }

    /// Whether an expired certificate is still there although another could have been had.
    fn look_at(&self, site: usize) {
        let site = &self.sites[site];
        let (Some(free_since), Some(held)) = (self.free_since, &site.held) else {
            return;
        };
        if site.is_broken || site.is_useless || self.now <= held.not_after {
            return;
        }
        let later = |since: &Since| since.at;
        let since = std::cmp::max_by_key(free_since, site.free_since, later);
        let at = since.at.max(self.used_up_until(site));
        let since = Since { at, ..since };
        let patience = self.patience(since, held.not_after);
        assert!(
            self.now <= since.at + patience,
            "{} expired at {}, and at {} nobody had got another one, though nothing stood in the \
             way since {}, with {} places taken; {patience} would have been enough",
            site.name,
            held.not_after,
            self.now,
            since.at,
            since.taken
        );
    }

    /// Until when the CA's limit of certificates for the same names is, or was, used up, for all
    /// that the host can know.
    fn used_up_until(&self, site: &Site) -> OffsetDateTime {
        let counted = site.counted.iter();
        let mut dates: Vec<_> = counted.map(|it| it.looks(self.boot, self.now)).collect();
        dates.sort_unstable();
        let first = dates.len().checked_sub(DUPLICATES.0 as usize);
        first.map_or(START, |first| dates[first] + DUPLICATES.1)
    }

    /// How long it may take from the moment at which nothing stands in the way any more: the wait
    /// after the last failure, and the turn of everybody else, behind what has had its turn within
    /// the time that the CA's limit looks back over.
    fn patience(&self, since: Since, expiry: OffsetDateTime) -> Duration {
        let distance: Duration = (since.at - expiry).abs();
        let after_failures = (distance / 7_i32).clamp(Duration::minutes(15), Duration::DAY);
        let session = Duration::HOUR;
        let turns = (self.sites.len() + since.taken) as i32 / NEW_ORDERS.0 as i32;
        let others = NEW_ORDERS.1 * turns + Duration::minutes(30);
        after_failures.max(session) * 1.1 + others
    }

    /// The end: what there is to say, and what must hold over all.
    pub(super) fn finish(&self) -> String {
        let week = Duration::days(7);
        let renewal = self.kind.lifetime * 0.45;
        let per_week: f64 = week / renewal;
        // One more for each end of the week, for a recall, for a clock that was ahead and for an
        // order that a crash lost.
        let most_issued = per_week.ceil() as usize + 5;
        // 1, 10 and 100 minutes, then daily; before and after an expiry an eighth of the distance
        // to it, but 15 minutes at least: some 45 each, and crashes of others count as failures.
        let most_attempts = 120;
        for site in 0..self.sites.len() {
            self.look_at(site);
            let site = &self.sites[site];
            assert!(
                site.most_issued <= most_issued,
                "{}: {}",
                site.name,
                site.most_issued
            );
            assert!(
                site.most_attempts <= most_attempts,
                "{}: {}",
                site.name,
                site.most_attempts
            );
            assert!(
                site.held.is_some() || site.is_broken,
                "{} has none",
                site.name
            );
        }
        let (accepted, refused) = (self.ca.accepted, self.ca.refused);
        let excused = self.lost_count;
        assert!(
            refused <= excused,
            "{refused} of {accepted} orders were too many, and only {excused} could have been"
        );
        // Every restart asks the CA, and so does what comes after an error of its server.
        let most_sessions = 4000.0 + f64::from(self.orders) * SERVER_ERRORS * 2.0;
        assert!(
            f64::from(self.sessions) < most_sessions,
            "{} sessions",
            self.sessions
        );
        let attempts = self.sites.iter().map(|site| site.most_attempts).max();
        let issued = self.sites.iter().map(|site| site.most_issued).max();
        format!(
            "{} orders ({refused} refused), {} requests for them and {} refused nonces, {} \
             questions, {} sessions; at most {issued:?} issued and {attempts:?} attempts for one \
             name in a week; expired for {} in sum, in outages",
            self.orders,
            self.requests,
            self.refused_nonces,
            self.questions,
            self.sessions,
            self.expired
        )
    }

    fn begins(&mut self, start: Start) {
        let site = self.site_of(start.id);
        let job = match &start.work {
            Work::Order { .. } => self.begins_order(site, start),
            Work::Ask { .. } => self.begins_question(site, start),
            Work::Internal => unreachable!("all names are the CA's"),
        };
        let takes = match job.ends {
            Ends::Question => Duration::milliseconds(self.rng.random_range(50..2000)),
            _ => Duration::milliseconds(self.rng.random_range(500..20_000)),
        };
        self.next_job += 1;
        self.jobs
            .insert((self.now + takes, self.next_job), (site, job));
    }

    fn site_of(&self, id: u64) -> usize {
        let entry = self.desk.as_ref().and_then(|desk| desk.entry(id)).unwrap();
        let text = entry.subject.name.to_string();
        text[1..text.len() - ".test".len()].parse().unwrap()
    }

    fn begins_order(&mut self, site: usize, mut start: Start) -> Job {
        let now = self.clock();
        let Work::Order {
            reason,
            replaces,
            reservation,
            ..
        } = &mut start.work
        else {
            unreachable!("it is an order")
        };
        let reservation = reservation.take();
        let (reason, exempt) = (reason.as_str(), *replaces && self.kind.renewal_info);
        if let Err(error) = self.session() {
            return Job {
                start,
                attempt: None,
                ends: Ends::NoSession(error),
            };
        }
        self.orders += 1;
        let week = self.now - Duration::days(7);
        let this = &mut self.sites[site];
        this.attempts.push_back(self.now);
        while this.attempts.front().is_some_and(|at| *at < week) {
            this.attempts.pop_front();
        }
        this.most_attempts = this.most_attempts.max(this.attempts.len());
        let attempt = this
            .ledger
            .begin(ledger::Kind::Order, URL, Some(reason), now)
            .unwrap();
        let ends = match self.resumed(site) {
            Some(pending) => Ends::Order(pending),
            None => self.places(site, reservation, exempt),
        };
        Job {
            start,
            attempt: Some(attempt),
            ends,
        }
    }

    /// As `order::Run::resume` and `order::Run::use_fetched`.
    fn resumed(&mut self, site: usize) -> Option<Pending> {
        let pending = self.sites[site].pending?;
        let is_good = match pending.certificate {
            None => (self.clock() - pending.created_at).abs() < PENDING_LIFETIME,
            Some(certificate) => {
                let age = self.clock() - certificate.not_before;
                let is_fresh = age < FETCHED_LIFETIME.min(self.kind.lifetime / 2);
                let has_expired = certificate.not_after <= self.clock();
                is_fresh || has_expired && self.now < certificate.not_after
            }
        };
        if is_good {
            return Some(pending);
        }
        self.sites[site].pending = None;
        let history = &self.authority.history;
        history.dropped(pending.event, self.clock()).unwrap();
        None
    }

    /// As `order::Run::place`.
    fn places(&mut self, site: usize, reservation: Option<Reservation>, exempt: bool) -> Ends {
        let now = self.clock();
        let names = [self.sites[site].name.clone()];
        let reservation = match reservation.filter(|_| !exempt) {
            None if !exempt => match self.authority.reserve(&names, now) {
                Ok(reservation) => Some(reservation),
                Err(Broken { until, .. }) => return Ends::Held { until },
            },
            reservation => reservation,
        };
        let event = match reservation {
            Some(reservation) => reservation.commit(),
            None => self.authority.history.order(&names, exempt, now),
        };
        let event = event.unwrap();
        if !exempt && !self.has_right_clock() {
            self.misdated.push(self.noted());
        }
        if self.ca.is_down {
            return Ends::Unanswered { event };
        }
        match self.ca.new_order(self.now, site, exempt) {
            Answer::Accepted => Ends::Order(Pending {
                event,
                created_at: now,
                exempt,
                certificate: None,
            }),
            Answer::TooMany { retry_after } => Ends::Refused {
                event,
                until: retry_after,
            },
        }
    }

    fn noted(&self) -> Noted {
        Noted {
            truly: self.now,
            noted: self.clock(),
            boot: self.boot,
            seen: None,
        }
    }

    /// As [`Authority::session`]: one request for all that come together.
    fn session(&mut self) -> Result<(), AcmeError> {
        if self.has_session {
            return Ok(());
        }
        if let Some((at, error)) = &self.session_error
            && self.now - *at < Duration::seconds(5)
        {
            return Err(error.clone());
        }
        let now = self.clock();
        self.sessions += 1;
        let ledger = &self.authority.ledger;
        let attempt = ledger.begin(ledger::Kind::Session, URL, None, now).unwrap();
        let result = match self.ca.is_down {
            true => Err(unreachable_error()),
            false => Ok(()),
        };
        let outcome = result.as_ref().map_or_else(Outcome::from, |()| Outcome::Ok);
        ledger.finish(attempt, outcome, &[], now).unwrap();
        self.has_session = result.is_ok();
        self.session_error = result.as_ref().err().map(|error| (self.now, error.clone()));
        result
    }

    /// As [`Authority::learn`].
    fn learn(&mut self, error: Option<&AcmeError>) {
        let now = self.clock();
        let limited = error.is_some_and(|error| error.class == Class::RateLimited);
        self.limited_in_a_row = if limited {
            self.limited_in_a_row + 1
        } else {
            0
        };
        if let Some(error) = error
            && (error.unreachable || self.limited_in_a_row >= 3)
        {
            self.has_session = false;
            let ledger = &self.authority.ledger;
            let attempt = ledger.begin(ledger::Kind::Session, URL, None, now).unwrap();
            ledger
                .finish(attempt, Outcome::from(error), &[], now)
                .unwrap();
        }
    }

    fn begins_question(&mut self, site: usize, start: Start) -> Job {
        let now = self.clock();
        self.questions += 1;
        let ledger = &self.sites[site].ledger;
        let id = self.certificate_id(site);
        let before = ledger.renewal_info(&id);
        let failures = before.as_ref().map_or(0, |before| before.failures) + 1;
        let error = unreachable_error();
        let next = renewal_info::next_fetch(now, Err(&error), failures);
        let blank = || StoredRenewalInfo::blank(&id, next);
        let kept = StoredRenewalInfo {
            next_fetch: next,
            failures,
            ..before.unwrap_or_else(blank)
        };
        ledger.set_renewal_info(Some(kept)).unwrap();
        let attempt = ledger
            .begin(ledger::Kind::RenewalInfo, URL, None, now)
            .unwrap();
        Job {
            start,
            attempt: Some(attempt),
            ends: Ends::Question,
        }
    }

    fn certificate_id(&self, site: usize) -> String {
        let serial = self.sites[site].held.map_or(0, |held| held.serial);
        format!("ca.{serial}")
    }

    fn ends(&mut self, site: usize, job: Job) {
        let now = self.clock();
        let id = job.start.id;
        if let Some(desk) = &mut self.desk {
            desk.ended(&job.start.lane, Some(id));
        }
        match job.ends {
            Ends::Question => self.answers(site, job),
            Ends::NoSession(error) => {
                let desk = self.desk.as_mut().unwrap();
                desk.failed(
                    id,
                    now,
                    LastError::from(&error),
                    Some(URL.to_owned()),
                    false,
                );
            }
            Ends::Refused { event, until } => {
                // Told to wait, it waits; and three in a row keep all the others waiting.
                // So long by a clock that is ahead, which may mean more once it is right.
                let until_by_clock = until + self.offset.max(Duration::ZERO);
                let free_since = self.since(until_by_clock);
                for site in &mut self.sites {
                    if site.free_since.at < until {
                        site.free_since = free_since;
                    }
                }
                self.authority.history.failed(event, None).unwrap();
                self.fails(site, job, &too_many(Some(until + self.offset)));
            }
            Ends::Held { until } => self.is_held(site, job, until),
            Ends::Unanswered { event } => {
                self.authority.history.failed(event, None).unwrap();
                self.fails(site, job, &unreachable_error());
            }
            Ends::Order(pending) => match self.verdict(site, pending) {
                Ok(certificate) => self.issues(site, job, certificate),
                Err(error) => {
                    if error.challenge.is_some() {
                        self.ca.failed(self.now, site);
                    }
                    self.breaks_off(site, pending, &error);
                    self.fails(site, job, &error);
                }
            },
        }
    }

    /// The order is over, or somebody will go on with it.
    fn breaks_off(&mut self, site: usize, pending: Pending, error: &AcmeError) {
        if !error.ends_the_order() {
            let known = self.sites[site].pending;
            let certificate = known.and_then(|known| known.certificate);
            let certificate = pending.certificate.or(certificate);
            return self.keep_order(
                site,
                Some(Pending {
                    certificate,
                    ..pending
                }),
            );
        }
        self.sites[site].pending = None;
        let name = error.identifier.clone();
        let name = name.filter(|_| error.challenge.is_some());
        let history = &self.authority.history;
        history.failed(pending.event, name).unwrap();
    }

    /// What becomes of an order.
    fn verdict(&mut self, site: usize, pending: Pending) -> Result<Certificate, AcmeError> {
        if let Some(certificate) = pending.certificate {
            return self.usable(certificate);
        }
        if self.ca.is_down {
            return Err(unreachable_error());
        }
        for _ in 0..REQUESTS {
            let part = match self.ca.forgets_nonces {
                true => FORGOTTEN_NONCES,
                false => REFUSED_NONCES,
            };
            self.requests += 1;
            let refused = |rng: &mut StdRng| rng.random_bool(part);
            let tries = (0..NONCE_TRIES).take_while(|_| refused(&mut self.rng));
            let refusals = tries.count() as u32;
            self.refused_nonces += u64::from(refusals);
            if refusals == NONCE_TRIES {
                let problem = Some("badNonce".to_owned());
                let error = AcmeError::new(Class::Retryable, "order", "no nonce was good");
                return Err(AcmeError { problem, ..error });
            }
        }
        if self.rng.random_bool(SERVER_ERRORS) {
            return Err(unreachable_error());
        }
        if self.sites[site].is_broken {
            return Err(AcmeError {
                problem: Some("connection".to_owned()),
                identifier: Some(self.sites[site].name.to_string()),
                challenge: Some(ChallengeType::TlsAlpn01),
                ..AcmeError::new(Class::Retryable, "order", "cannot connect")
            });
        }
        let certificate = self.signs(site, pending);
        if self.sites[site].is_useless {
            let cause = "for another key than the one asked for";
            return Err(AcmeError::new(Class::Retryable, "order", cause));
        }
        self.usable(certificate)
    }

    /// The CA issues, and counts that; so does the host, whatever it can do with it.
    fn signs(&mut self, site: usize, pending: Pending) -> Certificate {
        let (now, noted) = (self.clock(), self.noted());
        self.ca.issued(self.now, site, pending.exempt);
        let history = &self.authority.history;
        history.placed(pending.event, "an order").unwrap();
        history.finalized(pending.event).unwrap();
        history.issued(pending.event, now).unwrap();
        let this = &mut self.sites[site];
        if !pending.exempt {
            this.counted.push_back(noted);
            // More where a clock that was wrong has made some of them look older than they are.
            if this.counted.len() > 4 * DUPLICATES.0 as usize {
                this.counted.pop_front();
            }
        }
        self.serials += 1;
        let not_before = self.now - BACKDATED;
        let certificate = Certificate {
            serial: self.serials,
            not_before,
            not_after: not_before + self.kind.lifetime,
            issued_at_clock: now,
        };
        this.pending = Some(Pending {
            certificate: Some(certificate),
            ..pending
        });
        certificate
    }

    /// As `delivery` says.
    fn usable(&self, certificate: Certificate) -> Result<Certificate, AcmeError> {
        if certificate.not_after > self.now + self.offset {
            return Ok(certificate);
        }
        let cause = "expired: check this host's clock";
        Err(AcmeError::new(Class::Operator, "order", cause))
    }

    fn fails(&mut self, site: usize, job: Job, error: &AcmeError) {
        let now = self.clock();
        self.look_at(site);
        let free_since = self.since(self.now);
        let this = &mut self.sites[site];
        // From here on it is the plan's wait that counts.
        if this.free_since.at < self.now {
            this.free_since = free_since;
        }
        if let Some(attempt) = job.attempt {
            let challenges: Vec<ChallengeType> = error.challenge.into_iter().collect();
            let ledger = &self.sites[site].ledger;
            ledger
                .finish(attempt, Outcome::from(error), &challenges, now)
                .unwrap();
        }
        self.learn(Some(error));
        let unfinished = self.sites[site].unfinished();
        let desk = self.desk.as_mut().unwrap();
        if let Some(entry) = desk.entry_mut(job.start.id) {
            entry.unfinished = unfinished;
        }
        let error = LastError::from(error);
        desk.failed(job.start.id, now, error, Some(URL.to_owned()), true);
    }

    /// As [`Done::Held`](crate::acme::job::Done::Held).
    fn is_held(&mut self, site: usize, job: Job, until: OffsetDateTime) {
        let now = self.clock();
        let error = AcmeError {
            held: Some(Held::Anew),
            ..too_many(Some(until))
        };
        let unfinished = self.sites[site].unfinished();
        if let Some(attempt) = job.attempt {
            let ledger = &self.sites[site].ledger;
            let outcome = Outcome::from(&error);
            ledger.finish(attempt, outcome, &[], now).unwrap();
        }
        let desk = self.desk.as_mut().unwrap();
        if let Some(entry) = desk.entry_mut(job.start.id) {
            entry.unfinished = unfinished;
        }
        desk.held(job.start.id, now, LastError::from(&error), URL, until);
    }

    fn issues(&mut self, site: usize, job: Job, certificate: Certificate) {
        let now = self.clock();
        let week = self.now - Duration::days(7);
        let this = &mut self.sites[site];
        this.issued.push_back(self.now);
        while this.issued.front().is_some_and(|at| *at < week) {
            this.issued.pop_front();
        }
        this.most_issued = this.most_issued.max(this.issued.len());
        self.look_at(site);
        if let Some(held) = self.sites[site].held {
            self.expired += (self.now - held.not_after).max(Duration::ZERO);
        }
        let this = &mut self.sites[site];
        this.pending = None;
        this.held = Some(Certificate {
            issued_at_clock: now,
            ..certificate
        });
        if let Some(attempt) = job.attempt {
            let answered = [ChallengeType::TlsAlpn01];
            this.ledger
                .finish(attempt, Outcome::Ok, &answered, now)
                .unwrap();
        }
        self.learn(None);
        let this = &self.sites[site];
        let desk = self.desk.as_mut().unwrap();
        let id = job.start.id;
        desk.issued(
            id,
            stored(this, &this.held.unwrap()),
            Some(URL.to_owned()),
            Default::default(),
        );
        if let (Some(entry), Some(held)) = (desk.entry_mut(id), &this.held) {
            hold(entry, this, held);
        }
    }

    /// The CA's word on renewal, as usual at two thirds of the lifetime, but in the past for what
    /// it is about to revoke; or none, or nonsense.
    fn answers(&mut self, site: usize, job: Job) {
        let now = self.clock();
        let id = self.certificate_id(site);
        let fraction = self.rng.random_range(0.0..1.0);
        let this = &self.sites[site];
        let result = match (&this.held, self.rng.random_range(0..50)) {
            _ if self.ca.is_down => Err(unreachable_error()),
            (_, 0) => Err(AcmeError::new(
                Class::Retryable,
                "renewal information",
                "nonsense",
            )),
            (None, _) => Err(AcmeError::new(
                Class::Retryable,
                "renewal information",
                "unknown",
            )),
            (Some(held), odd) => {
                let recalled = this.recalled_serial == Some(held.serial);
                let at = |part: f64| held.not_before + self.kind.lifetime * part;
                // Of some the CA says that they are good for longer than they are.
                let is_odd = held.serial % 10 == 0;
                let (start, end) = match (recalled, is_odd) {
                    (true, _) => (self.now - Duration::days(2), self.now - Duration::DAY),
                    (false, true) => (at(1.5), at(1.6)),
                    (false, false) => (at(0.64), at(0.68)),
                };
                Ok(renewal_info::Answer {
                    window: SuggestedWindow::new(start, end).unwrap(),
                    explanation_url: None,
                    retry_after: (odd > 3).then(|| now + Duration::hours(20)),
                })
            }
        };
        let before = this.ledger.renewal_info(&id);
        let failures = before.as_ref().map_or(0, |before| before.failures);
        let next = renewal_info::next_fetch(now, result.as_ref(), failures);
        let info = match &result {
            Ok(answer) if self.kind.renewal_info => {
                StoredRenewalInfo::answered(&id, before.as_ref(), answer, next, fraction)
            }
            // Without renewal information in the directory nobody is asked, and a day later again.
            Ok(_) => {
                self.authority.offers_no_renewal_info(now);
                StoredRenewalInfo::blank(&id, now + Duration::DAY)
            }
            Err(_) => StoredRenewalInfo {
                next_fetch: next,
                ..before.unwrap_or_else(|| StoredRenewalInfo::blank(&id, next))
            },
        };
        this.ledger.set_renewal_info(Some(info)).unwrap();
        if let Some(attempt) = job.attempt {
            let outcome = result.as_ref().map_or_else(Outcome::from, |_| Outcome::Ok);
            this.ledger.finish(attempt, outcome, &[], now).unwrap();
        }
        let desk = self.desk.as_mut().unwrap();
        desk.asked(
            job.start.id,
            now,
            result.err().map(|error| error.to_string()),
        );
    }
}

/// The host's uptime counts milliseconds, and so does this world: or the CA, which counts to the
/// nanosecond, would find orders too early by less than that.
fn whole(at: OffsetDateTime) -> OffsetDateTime {
    match at.truncate_to_millisecond() {
        whole if whole == at => at,
        earlier => earlier + Duration::MILLISECOND,
    }
}

fn too_many(retry_after: Option<OffsetDateTime>) -> AcmeError {
    AcmeError {
        problem: Some("rateLimited".to_owned()),
        retry_after,
        ..AcmeError::new(Class::RateLimited, "order", "too many")
    }
}

fn unreachable_error() -> AcmeError {
    AcmeError {
        unreachable: true,
        ..AcmeError::new(Class::Retryable, "session", "cannot reach the CA")
    }
}

/// The certificate as it would be read from disk.
fn stored(site: &Site, held: &Certificate) -> StoredCertificate {
    let names = vec![site.name.clone()];
    let meta = Meta::new(Source::Acme, &names, KeyType::P256, held.issued_at_clock);
    StoredCertificate {
        path: site.dir.clone(),
        leaf: Leaf {
            der: Vec::new(),
            not_before: held.not_before,
            not_after: held.not_after,
            names,
            serial: format!("{:x}", held.serial),
            issuer: "CN=simulated".to_owned(),
            public_key: Vec::new(),
        },
        meta: Meta {
            ca: Some(URL.to_owned()),
            ..meta
        },
    }
}

fn hold(entry: &mut Entry, site: &Site, held: &Certificate) {
    entry.set_stored(Some(stored(site, held)));
    entry.certificate_id = Some(format!("ca.{}", held.serial));
}
