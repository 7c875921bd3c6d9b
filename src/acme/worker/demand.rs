//! Certificates that clients ask for by name: taken on when somebody asks, dropped when nobody
//! does. Whether a name may be asked for at all is not decided here.

use std::path::PathBuf;

use time::{Duration, OffsetDateTime};
use tokio::sync::oneshot;

use super::desk::Desk;
use super::entry::Entry;
use super::handle::Unserved;
use super::{MAX_SLEEP, Worker};
use crate::acme::account::blocking;
use crate::acme::error::LastError;
use crate::acme::subject::Subject;
use crate::certificate::name::Name;

/// A certificate that is due is renewed if somebody asked for it within this part of its lifetime.
/// It is due at two thirds of that: what is asked for after that is renewed behind the answer, so
/// that nobody ever waits for a name that is in use.
const RECENT_DIVISOR: i32 = 3;

/// How soon, as a part of its lifetime, it is noticed that somebody asks for what is due; a minute
/// at most, which only certificates of a laboratory do not reach.
const LOOK_DIVISOR: i32 = 100;

/// How long a "no" to a renewal holds: long enough to cost whoever says it next to nothing.
const WITHDRAWN_HOLDS: Duration = Duration::hours(1);

impl Worker {
    /// Where the certificate of a subject is written.
    pub(super) fn directory(&self, subject: &Subject, on_demand: bool) -> PathBuf {
        let (name, key_type) = (&subject.name, subject.key_type);
        match on_demand {
            true => self.state.on_demand_certificate_dir(name, key_type),
            false => self.state.certificate_dir(name, key_type),
        }
    }

    /// Takes a name on, or joins those that wait for it.
    pub(super) async fn demand(
        &mut self,
        subject: Subject,
        reply: oneshot::Sender<Result<(), Unserved>>,
    ) {
        if let Some(id) = self.desk.demanded(&subject.name) {
            return self.desk.join(id, reply);
        }
        let dir = self.directory(&subject, true);
        let id = self.desk.add(Entry {
            on_demand: true,
            waiting: vec![reply],
            ..Entry::new(subject, dir, None)
        });
        self.load(&[id]).await;
    }

    /// Looks after what clients were given on demand once more, because people speak of it: nobody
    /// may have asked for it since the start.
    pub(super) async fn recall(&mut self, name: &Name) {
        let subject = self.assignment.on_demand.subject(name);
        let Some(subject) = subject.filter(|_| self.desk.by_name(name).is_none()) else {
            return;
        };
        let dir = self.directory(&subject, true);
        let place = dir.parent().unwrap_or(&dir).to_owned();
        if blocking(move || place.is_dir()).await {
            let id = self.desk.add(Entry {
                on_demand: true,
                ..Entry::new(subject, dir, None)
            });
            self.load(&[id]).await;
        }
    }

    /// The subjects of the names that are looked after and may still be, as the assignment has
    /// them now. Whoever waits for another is told.
    pub(super) fn still_demanded(&mut self) -> Vec<Subject> {
        let mut kept = Vec::new();
        for (name, id) in self.desk.take_demanded() {
            match self.assignment.on_demand.subject(&name) {
                Some(subject) => kept.push(subject),
                None => self.desk.turn_away(id, "the configuration has changed"),
            }
        }
        kept
    }
}

impl Desk {
    /// One more that waits for a name.
    fn join(&mut self, id: u64, reply: oneshot::Sender<Result<(), Unserved>>) {
        if let Some(entry) = self.entry_mut(id) {
            entry.waiting.retain(|waiting| !waiting.is_closed());
            entry.waiting.push(reply);
        }
        self.check_at(id, OffsetDateTime::UNIX_EPOCH);
    }

    fn turn_away(&mut self, id: u64, cause: &str) {
        let unserved = Unserved {
            cause: cause.to_owned(),
            until: None,
        };
        let waiting = self.entry_mut(id).map(|it| &mut it.waiting);
        for reply in waiting.map(std::mem::take).unwrap_or_default() {
            // Whoever asked may have gone.
            let _ = reply.send(Err(unserved.clone()));
        }
    }

    /// Whether a certificate is to be seen to at all: one that nobody waits for and that is not
    /// in memory either is looked after again when somebody asks.
    pub(super) fn is_wanted(&self, id: u64) -> bool {
        self.entry(id).is_some_and(|entry| {
            !entry.on_demand
                || entry.running
                || entry.is_asked_for_by_people()
                || entry.is_waited_for()
                || (self.surroundings.asked)(&entry.subject.name).is_some()
        })
    }

    /// Whether what is due is to be done: for what clients asked for, only while they do.
    pub(super) fn is_due_on_demand(&self, entry: &Entry, now: OffsetDateTime) -> bool {
        if !entry.on_demand || entry.forced || entry.ask_again || entry.is_waited_for() {
            return true;
        }
        let withdrawn = |at: OffsetDateTime| (now - at).abs() < WITHDRAWN_HOLDS;
        if entry.withdrawn_at.is_some_and(withdrawn) {
            return false;
        }
        let asked = (self.surroundings.asked)(&entry.subject.name);
        let stored = entry.stored.as_ref();
        asked.zip(stored).is_some_and(|(at, stored)| {
            let lifetime = stored.leaf.not_after - stored.leaf.not_before;
            now - at <= lifetime / RECENT_DIVISOR
        })
    }

    /// It is not to be renewed: what there is is served until it expires.
    pub(super) fn withdrawn(&mut self, id: u64, now: OffsetDateTime, cause: &str) {
        if let Some(entry) = self.entry_mut(id) {
            let text = format!("{} is not renewed: {cause}", entry.subject.name);
            if entry.last_error.as_ref().is_none_or(|it| it.text != text) {
                tracing::info!("{text}");
            }
            entry.last_error = Some(LastError::from(text));
            entry.withdrawn_at = Some(now);
        }
    }

    /// Answers those that wait for a name, as soon as there is something to say, and drops the
    /// name if nobody wants it.
    pub(super) fn settle(&mut self, id: u64, now: OffsetDateTime) {
        let is_queued = self.is_queued(id);
        let Some(entry) = self.entry_mut(id).filter(|it| it.on_demand) else {
            return;
        };
        let stored = entry.stored.as_ref();
        let valid = stored.is_some_and(|it| it.leaf.not_before <= now && now < it.leaf.not_after);
        if valid {
            for reply in std::mem::take(&mut entry.waiting) {
                // Whoever asked may have gone.
                let _ = reply.send(Ok(()));
            }
        }
        if entry.running || is_queued {
            return;
        }
        // Another CA may have its turn at once.
        if entry.timer.is_some_and(|at| at > now) && !self.takes_over {
            self.refuse_waiting(id);
        }
        if !self.is_wanted(id) {
            self.drop_entry(id);
        }
    }

    fn refuse_waiting(&mut self, id: u64) {
        let (status, is_writer) = (self.published(id), self.is_writer);
        let not_writer = self.not_writer().to_string();
        let Some(entry) = self.entry_mut(id) else {
            return;
        };
        let cause = match is_writer {
            false => Some(not_writer),
            true => status.as_ref().and_then(|it| it.last_error.clone()),
        };
        let unserved = Unserved {
            cause: cause.unwrap_or_else(|| "it cannot be ordered now".to_owned()),
            until: status.and_then(|it| it.next_attempt),
        };
        for reply in std::mem::take(&mut entry.waiting) {
            // Whoever asked may have gone.
            let _ = reply.send(Err(unserved.clone()));
        }
    }
}

impl Entry {
    /// When to see whether a client has asked for what is due.
    pub(super) fn look_again(&self, now: OffsetDateTime) -> OffsetDateTime {
        let stored = self.stored.as_ref();
        let lifetime = stored.map(|it| it.leaf.not_after - it.leaf.not_before);
        let wait = lifetime.map_or(MAX_SLEEP, |lifetime| lifetime / LOOK_DIVISOR);
        now + wait.clamp(Duration::SECOND, MAX_SLEEP)
    }

    fn is_asked_for_by_people(&self) -> bool {
        self.forced || self.ask_now || self.ask_again || self.reply.is_some()
    }

    pub(super) fn is_waited_for(&self) -> bool {
        self.waiting.iter().any(|reply| !reply.is_closed())
    }
}
