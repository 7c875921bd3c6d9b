//! When to order a certificate, and when not to: a pure function of the time, the certificate that
//! is stored, the CA's renewal information and the attempts so far. It imports no clock, no
//! randomness, no file system and no async; whoever calls it acts on the answer.
//!
//! Everything is a fraction of the certificate's own lifetime on the wall clock, never a number of
//! days: lifetimes are 90 days, 45 days, 160 hours, and 40 seconds in a laboratory.
//!
//! ## The backoff after failures
//! 1 min, 10 min, 100 min, then daily, each up to 10 % longer by jitter. Where a certificate is
//! stored, no wait is longer than an eighth of the time between the attempt and its expiry, before
//! or after it, so that a few attempts always fit before the expiry, and an outage is retried
//! densely at first and ever less. That eighth has a floor, 1/500 of the lifetime but 1 to 15
//! minutes (four attempts an hour stay below the five failed validations an hour that CAs allow),
//! and 2 seconds for lifetimes under 10 minutes, which only laboratories have.

use time::{Duration, OffsetDateTime};

use super::queue::Priority;
use crate::certificate::name::Name;
use crate::certificate::overdue::due_after;
use crate::config::{KeyType, Takeover};

/// Jitter brings a renewal forward by up to this part of the lifetime, so that certificates
/// ordered together are not renewed together.
const DUE_JITTER_DIVISOR: f64 = 100.0;
/// With this part of the lifetime left (CertMagic's figure) nothing puts the renewal off further.
const EMERGENCY_DIVISOR: i32 = 20;
/// What an order, a few retries of it and the reload take at most: a twentieth of a lifetime of
/// minutes would be too late. A quarter of the lifetime where even that is less.
const EMERGENCY_TIME: Duration = Duration::minutes(2);
/// A certificate is not replaced on account of dates within this part of its lifetime after its
/// issuance: with a wrong clock or a mistaken CA every new one would be due again at once.
const MIN_AGE_DIVISOR: i32 = 50;
const MAX_MIN_AGE: Duration = Duration::days(1);

/// Lifetimes below this are laboratory ones: their backoff has a floor of seconds.
const LAB_LIFETIME: Duration = Duration::minutes(10);
const LAB_FLOOR: Duration = Duration::seconds(2);
const MIN_FLOOR: Duration = Duration::minutes(1);
const MAX_FLOOR: Duration = Duration::minutes(15);
const FLOOR_DIVISOR: i32 = 500;
/// A wait after a failure is at most this part of the time between the attempt and the expiry.
const REMAINING_DIVISOR: i32 = 8;
/// How much longer than the schedule jitter makes a wait after a failure, at most.
const RETRY_JITTER: f64 = 0.1;
/// A `Retry-After` is honoured up to this; rate limits are counted over a week at most.
const MAX_RETRY_AFTER: Duration = Duration::days(7);
/// An attempt that began further in the future than this began under a wrong clock.
const CLOCK_TOLERANCE: Duration = Duration::minutes(1);
/// Renewal information is asked for at least this often (RFC 9773 section 4.3.2 has the CA say
/// when; a later date than this in our own state comes from a wrong clock).
const MAX_FETCH_WAIT: Duration = Duration::days(1);

/// Who signs a certificate of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IssuerKind {
    Acme,
    Internal,
}

impl IssuerKind {
    /// `acme` or `internal`, as the admin API names it.
    pub fn as_str(self) -> &'static str {
        match self {
            IssuerKind::Acme => "acme",
            IssuerKind::Internal => "internal",
        }
    }
}

impl From<Takeover> for IssuerKind {
    fn from(takeover: Takeover) -> IssuerKind {
        match takeover {
            Takeover::Acme => IssuerKind::Acme,
            Takeover::Internal => IssuerKind::Internal,
        }
    }
}

/// All that a decision depends on, beside the time.
#[derive(Clone, Debug)]
pub struct Facts {
    pub wanted: Wanted,
    pub stored: Option<Stored>,
    pub renewal_info: RenewalInfo,
    /// Attempts for this certificate at the issuer that is next in turn.
    pub attempts: Attempts,
    /// Attempts to reach that issuer at all, for whichever certificate.
    pub session: Attempts,
    /// Until when a certificate from files covers every wanted name, where that counts.
    pub covered_by_file_until: Option<OffsetDateTime>,
    pub jitter: Jitter,
}

/// What the configuration asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub names: Vec<Name>,
    pub key_type: KeyType,
    pub issuer: IssuerKind,
}

/// The certificate on disk.
#[derive(Clone, Debug)]
pub struct Stored {
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub names: Vec<Name>,
    /// `None` where what is on disk does not say.
    pub key_type: Option<KeyType>,
    pub issuer: IssuerKind,
    /// Whether the issuer is still one of the configured ones.
    pub issuer_configured: bool,
    /// When we wrote it, by our own clock.
    pub issued_at: OffsetDateTime,
    /// Whether it was itself ordered before its time: because renewal information said so, or
    /// because its predecessor was revoked.
    pub ordered_early: bool,
    /// Whether the CA is known to have revoked it.
    pub revoked: bool,
}

impl Stored {
    fn lifetime(&self) -> Duration {
        (self.not_after - self.not_before).max(Duration::SECOND)
    }

    fn emergency_at(&self) -> OffsetDateTime {
        let lifetime = self.lifetime();
        let short = EMERGENCY_TIME.min(lifetime / 4);
        self.not_after - (lifetime / EMERGENCY_DIVISOR).max(short)
    }

    /// The due date without renewal information.
    fn due_at(&self, jitter: f64) -> OffsetDateTime {
        let lifetime = self.lifetime();
        self.not_before + due_after(lifetime)
            - lifetime * (jitter.clamp(0.0, 1.0) / DUE_JITTER_DIVISOR)
    }

    /// Before this, dates alone are no reason to replace it.
    fn mature_at(&self) -> OffsetDateTime {
        self.issued_at + (self.lifetime() / MIN_AGE_DIVISOR).min(MAX_MIN_AGE)
    }

    /// Whether it is so new that dates are no reason yet. An issuance in the future says that the
    /// clock was wrong then, so nothing about age.
    fn is_immature(&self, now: OffsetDateTime) -> bool {
        self.issued_at <= now && now < self.mature_at()
    }
}

/// Renewal information (RFC 9773) for the stored certificate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RenewalInfo {
    /// Whether the CA that issued it offers any.
    pub supported: bool,
    pub window: Option<Window>,
    /// When to ask again; `None` where it was never asked.
    pub next_fetch: Option<OffsetDateTime>,
}

/// A window that a CA suggests (RFC 9773 section 4.2). It ends after it starts: one that does not
/// is no answer, and cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuggestedWindow {
    start: OffsetDateTime,
    end: OffsetDateTime,
}

impl SuggestedWindow {
    /// `None`: it does not end after it starts.
    pub fn new(start: OffsetDateTime, end: OffsetDateTime) -> Option<SuggestedWindow> {
        (start < end).then_some(SuggestedWindow { start, end })
    }

    pub fn start(&self) -> OffsetDateTime {
        self.start
    }

    pub fn end(&self) -> OffsetDateTime {
        self.end
    }
}

/// A suggested window and the instant chosen in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    suggested: SuggestedWindow,
    selected: OffsetDateTime,
}

impl Window {
    /// The window with an instant chosen uniformly in it (`fraction` in 0..1), or the one chosen
    /// before where the window is the same.
    pub fn choose(previous: Option<&Window>, suggested: SuggestedWindow, fraction: f64) -> Window {
        let length = suggested.end - suggested.start;
        match previous {
            Some(window) if window.suggested == suggested => *window,
            _ => Window {
                suggested,
                selected: suggested.start + length * fraction.clamp(0.0, 1.0),
            },
        }
    }

    /// The window with the instant that was chosen in it earlier.
    pub fn chosen(suggested: SuggestedWindow, selected: OffsetDateTime) -> Window {
        Window {
            suggested,
            selected: selected.clamp(suggested.start, suggested.end),
        }
    }

    pub fn suggested(&self) -> SuggestedWindow {
        self.suggested
    }

    pub fn selected(&self) -> OffsetDateTime {
        self.selected
    }
}

/// What happened since the last success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// In a row, unfinished ones (a crash) among them.
    pub failures: u32,
    /// When the newest of them ended, or began where a crash left no end.
    pub last: Option<OffsetDateTime>,
    /// Until when the other side asked us to wait.
    pub retry_after: Option<OffsetDateTime>,
    /// The newest says that another issuer is to be asked.
    pub elsewhere: bool,
}

/// Fractions in 0..1, the same again after a restart: see [`fraction`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Jitter {
    pub due: f64,
    pub retry: f64,
}

/// A fraction in 0..1 that looks random and depends on `seed` alone, so that a restart chooses the
/// same instant again.
pub fn fraction(seed: &str) -> f64 {
    let digest = boring::sha::sha256(seed.as_bytes());
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&digest[..4]);
    f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Nothing: somebody else's certificate is good until then.
    CoveredByFiles { until: OffsetDateTime },
    /// Nothing before `until`.
    Wait {
        until: OffsetDateTime,
        reason: WaitReason,
    },
    /// Ask the CA for renewal information, then decide again.
    FetchRenewalInfo,
    /// Order a certificate. `replaces`: tell the CA that it succeeds the stored one.
    Order { reason: OrderReason, replaces: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// Neither a renewal nor a question to the CA is due.
    NotDue,
    /// An attempt is due, but the last ones failed.
    Backoff,
    /// An attempt is due, but the issuer cannot be reached.
    IssuerUnreachable,
    /// The stored certificate looks due, but is brand new.
    JustIssued,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderReason {
    /// There is none.
    First,
    /// Its part of the lifetime has passed.
    Due,
    /// The CA suggests it (RFC 9773).
    RenewalInfo,
    /// What is stored is revoked.
    Revoked,
    /// Hardly any lifetime is left.
    Emergency,
    Expired,
    NamesChanged,
    KeyTypeChanged,
    /// What is stored comes from an issuer that is no longer the one asked for.
    IssuerChanged,
    /// Somebody said so.
    Requested,
}

impl OrderReason {
    pub fn as_str(self) -> &'static str {
        match self {
            OrderReason::First => "first",
            OrderReason::Due => "due",
            OrderReason::RenewalInfo => "renewal-info",
            OrderReason::Revoked => "revoked",
            OrderReason::Emergency => "emergency",
            OrderReason::Expired => "expired",
            OrderReason::NamesChanged => "names-changed",
            OrderReason::KeyTypeChanged => "key-type-changed",
            OrderReason::IssuerChanged => "issuer-changed",
            OrderReason::Requested => "requested",
        }
    }
}

/// Decides. See the module for the rules.
pub fn plan(now: OffsetDateTime, facts: &Facts) -> Action {
    if let Some(until) = facts.covered_by_file_until
        && until > now
    {
        return Action::CoveredByFiles { until };
    }
    match need(now, facts) {
        Need::Now(OrderReason::Due | OrderReason::KeyTypeChanged)
            if fetch_at(now, facts).is_some_and(|at| at <= now) =>
        {
            // The answer may put the renewal off, and says whether the CA wants to know what is
            // replaced; a failed question moves `next_fetch`, so that it holds the order up once
            // at most.
            fetch(now, facts, now)
        }
        Need::Now(reason) => match blocked(now, facts) {
            Some((until, reason)) => Action::Wait { until, reason },
            None => Action::Order {
                reason,
                replaces: replaces(now, facts),
            },
        },
        Need::Young(until) => Action::Wait {
            until,
            reason: WaitReason::JustIssued,
        },
        Need::At(due) => match fetch_at(now, facts) {
            Some(at) if at <= now => fetch(now, facts, due),
            Some(at) => not_due(due.min(at)),
            None => not_due(due),
        },
    }
}

/// When the certificate is to be renewed as things stand: for people, and for metrics. `None`
/// where there is none yet.
pub fn next_renewal(facts: &Facts) -> Option<OffsetDateTime> {
    let stored = facts.stored.as_ref()?;
    Some(renewal_at(stored, facts).0)
}

/// Until when a failed attempt keeps the next one from starting; `None` where nothing does.
pub fn blocked(now: OffsetDateTime, facts: &Facts) -> Option<(OffsetDateTime, WaitReason)> {
    let schedule = match facts.wanted.issuer {
        IssuerKind::Acme => Schedule::Order,
        IssuerKind::Internal => Schedule::Internal,
    };
    let own = next_attempt(now, &facts.attempts, schedule, facts);
    let session = next_attempt(now, &facts.session, Schedule::Session, facts);
    match (own, session) {
        (Some(own), session) if session.is_none_or(|session| own >= session) => {
            Some((own, WaitReason::Backoff))
        }
        (_, Some(session)) => Some((session, WaitReason::IssuerUnreachable)),
        _ => None,
    }
}

/// Whether a CA counts as unreachable now: it failed to answer, and the wait after that, as long
/// as it is where nothing is urgent, is not over.
pub fn is_unreachable(now: OffsetDateTime, session: &Attempts) -> bool {
    let over = |last: OffsetDateTime| last + Schedule::Session.base(session.failures) <= now;
    session
        .last
        .is_some_and(|last| last <= now + CLOCK_TOLERANCE && !over(last))
}

/// When time alone changes what is needed, or how urgently.
pub fn changes_at(now: OffsetDateTime, facts: &Facts) -> Option<OffsetDateTime> {
    let stored = facts.stored.as_ref()?;
    let (renewal, _) = renewal_at(stored, facts);
    let each = [renewal, stored.emergency_at(), stored.not_after];
    each.into_iter().filter(|at| *at > now).min()
}

/// How urgent an order for this reason is.
pub fn priority(now: OffsetDateTime, facts: &Facts, reason: OrderReason) -> Priority {
    let Some(stored) = facts.stored.as_ref().filter(|it| now < it.not_after) else {
        return Priority::Missing;
    };
    match reason {
        OrderReason::First | OrderReason::Expired | OrderReason::NamesChanged => Priority::Missing,
        OrderReason::Revoked | OrderReason::Requested => Priority::Revoked,
        _ if now >= stored.emergency_at() => Priority::Expiring,
        // A whole window in the past, before the certificate is due: so a CA tells that it is about
        // to revoke, or has revoked (RFC 9773 section 4.2).
        OrderReason::RenewalInfo if calls_at_once(now, stored, facts) => Priority::Revoked,
        _ => Priority::Due,
    }
}

fn calls_at_once(now: OffsetDateTime, stored: &Stored, facts: &Facts) -> bool {
    let window = facts.renewal_info.window;
    now < stored.due_at(1.0) && window.is_some_and(|window| window.suggested.end <= now)
}

enum Need {
    Now(OrderReason),
    At(OffsetDateTime),
    /// It looks due, but it is too new for that to be true.
    Young(OffsetDateTime),
}

fn need(now: OffsetDateTime, facts: &Facts) -> Need {
    let Some(stored) = &facts.stored else {
        return Need::Now(OrderReason::First);
    };
    if let Some(reason) = mismatch(stored, &facts.wanted) {
        return Need::Now(reason);
    }
    let (at, reason) = renewal_at(stored, facts);
    if stored.revoked && now < stored.not_after {
        // The first hint is believed at once. A successor that is revoked as well, or called so by
        // a list that is wrong, must not be ordered again and again.
        return match stored.ordered_early && stored.is_immature(now) {
            true => Need::Young(stored.mature_at()),
            false => Need::Now(OrderReason::Revoked),
        };
    }
    if now < at {
        return Need::At(at);
    }
    let first_hint = reason == OrderReason::RenewalInfo && !stored.ordered_early;
    if stored.is_immature(now) && !first_hint {
        return Need::Young(stored.mature_at());
    }
    Need::Now(if now >= stored.not_after {
        OrderReason::Expired
    } else if reason == OrderReason::Due && now >= stored.emergency_at() {
        OrderReason::Emergency
    } else {
        reason
    })
}

/// Why the stored certificate is not what is wanted, whatever its dates.
fn mismatch(stored: &Stored, wanted: &Wanted) -> Option<OrderReason> {
    let covers = |name: &Name| stored.names.iter().any(|own| own.covers(name));
    if stored.issuer != wanted.issuer || !stored.issuer_configured {
        Some(OrderReason::IssuerChanged)
    } else if !wanted.names.iter().all(covers) {
        Some(OrderReason::NamesChanged)
    } else if stored.key_type.is_some_and(|key| key != wanted.key_type) {
        Some(OrderReason::KeyTypeChanged)
    } else {
        None
    }
}

/// The instant of renewal and what sets it. Renewal information moves it earlier or later, but
/// never past the emergency threshold.
fn renewal_at(stored: &Stored, facts: &Facts) -> (OffsetDateTime, OrderReason) {
    let window = facts.renewal_info.window;
    let Some(window) = window.filter(|_| facts.renewal_info.supported) else {
        return (stored.due_at(facts.jitter.due), OrderReason::Due);
    };
    let emergency = stored.emergency_at();
    match window.selected < emergency {
        true => (window.selected, OrderReason::RenewalInfo),
        false => (emergency, OrderReason::Emergency),
    }
}

/// When to ask for renewal information; `None`: never for this certificate.
fn fetch_at(now: OffsetDateTime, facts: &Facts) -> Option<OffsetDateTime> {
    let stored = facts.stored.as_ref()?;
    let asks = facts.renewal_info.supported
        && facts.wanted.issuer == IssuerKind::Acme
        && now < stored.not_after;
    match facts.renewal_info.next_fetch {
        _ if !asks => None,
        Some(at) if at - now <= MAX_FETCH_WAIT + CLOCK_TOLERANCE => Some(at),
        _ => Some(now),
    }
}

/// Asks, unless the CA cannot be reached: then nothing happens before `due`.
fn fetch(now: OffsetDateTime, facts: &Facts, due: OffsetDateTime) -> Action {
    match next_attempt(now, &facts.session, Schedule::Session, facts) {
        None => Action::FetchRenewalInfo,
        Some(until) if due <= now || until < due => Action::Wait {
            until,
            reason: WaitReason::IssuerUnreachable,
        },
        Some(_) => not_due(due),
    }
}

fn not_due(until: OffsetDateTime) -> Action {
    Action::Wait {
        until,
        reason: WaitReason::NotDue,
    }
}

/// RFC 9773 section 5: a predecessor of the same CA that shares a name, and is still alive.
fn replaces(now: OffsetDateTime, facts: &Facts) -> bool {
    facts.wanted.issuer == IssuerKind::Acme
        && facts.stored.as_ref().is_some_and(|stored| {
            stored.issuer == IssuerKind::Acme
                && now < stored.not_after
                && facts
                    .wanted
                    .names
                    .iter()
                    .any(|name| stored.names.contains(name))
        })
}

/// How long to wait after the n-th failure in a row.
#[derive(Clone, Copy)]
enum Schedule {
    Order,
    /// Reaching a CA at all costs no rate limit, so an outage is noticed to be over sooner.
    Session,
    /// Our own CA: what fails there is a disk, and nobody is bothered by trying again.
    Internal,
}

impl Schedule {
    fn base(self, failures: u32) -> Duration {
        match (self, failures) {
            (_, 0) => Duration::ZERO,
            (Schedule::Order, 1) => Duration::minutes(1),
            (Schedule::Order, 2) => Duration::minutes(10),
            (Schedule::Order, 3) => Duration::minutes(100),
            (Schedule::Order, _) => Duration::days(1),
            (Schedule::Session, n) => Duration::minutes(1 << (n - 1).min(6)).min(Duration::HOUR),
            (Schedule::Internal, 1) => Duration::seconds(1),
            (Schedule::Internal, 2) => Duration::seconds(10),
            (Schedule::Internal, _) => Duration::minutes(1),
        }
    }
}

/// The instant before which no attempt may start; `None` where one may start now.
fn next_attempt(
    now: OffsetDateTime,
    attempts: &Attempts,
    schedule: Schedule,
    facts: &Facts,
) -> Option<OffsetDateTime> {
    let last = attempts.last?;
    if last > now + CLOCK_TOLERANCE {
        return None;
    }
    let cap = facts
        .stored
        .as_ref()
        .map(|stored| longest_wait(stored, last));
    let base = schedule.base(attempts.failures);
    let wait = cap.map_or(base, |cap| base.min(cap));
    let jittered = wait * (1.0 + RETRY_JITTER * facts.jitter.retry.clamp(0.0, 1.0));
    let asked = attempts
        .retry_after
        .map(|until| until.min(last + MAX_RETRY_AFTER));
    let at = asked.map_or(last + jittered, |asked| asked.max(last + jittered));
    (at > now).then_some(at)
}

/// See "The backoff after failures" above.
fn longest_wait(stored: &Stored, attempt: OffsetDateTime) -> Duration {
    let lifetime = stored.lifetime();
    let floor = if lifetime < LAB_LIFETIME {
        LAB_FLOOR
    } else {
        (lifetime / FLOOR_DIVISOR).clamp(MIN_FLOOR, MAX_FLOOR)
    };
    ((stored.not_after - attempt).abs() / REMAINING_DIVISOR).max(floor)
}

#[cfg(test)]
#[path = "renewal_tests.rs"]
mod tests;
