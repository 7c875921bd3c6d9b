//! What was asked of one CA, by all certificates together, as long as its limits look back: one
//! line each in a file of the ledger, on disk before the request leaves. It records;
//! [`limits`](super::limits) decides what it means.

mod dates;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use self::dates::{Dates, Moment};
use super::limits::{self, Broken, End, Event, Past, What};
use crate::certificate::name::Name;
use crate::clock;
use crate::config::Limits;
use crate::store::{self, SECRET_FILE, StateDir, StoreError, atomic};

/// Lines that are over before the file is written anew.
const MAX_STALE_LINES: usize = 4096;
/// An order, its URL, its finalization, its certificate and its failure.
const LINES_OF_AN_EVENT: usize = 5;

/// One line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Account {
        id: u64,
        #[serde(flatten)]
        dates: Dates,
    },
    Order {
        id: u64,
        #[serde(flatten)]
        dates: Dates,
        names: BTreeSet<String>,
        exempt: bool,
    },
    /// The CA has the order with this number under this URL. One without is an order that was
    /// not answered, or one that a crash lost.
    Placed {
        id: u64,
        url: String,
        /// When it said so; in lines of earlier versions, and where a crash came first, `None`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answered: Option<Dates>,
    },
    /// The CA is about to be told to issue for the order with this number.
    Finalized { id: u64 },
    /// The CA has issued for the order with this number, and counts that; or it may have, and the
    /// order was dropped before anybody knew.
    Issued {
        id: u64,
        #[serde(flatten)]
        dates: Dates,
    },
    /// The order with this number left no certificate, or none that is of any use.
    Failed {
        id: u64,
        name: Option<String>,
        /// When the CA has refused it, or was waited for no longer; `None`: it had it before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answered: Option<Dates>,
    },
}

/// The history of one CA.
#[derive(Debug)]
pub struct History {
    /// `None`: in memory alone, for simulations.
    path: Option<PathBuf>,
    steady: Steady,
    memory: Mutex<Memory>,
}

/// Whose uptime records are dated by.
#[derive(Clone, Debug)]
pub(super) enum Steady {
    Host,
    #[cfg(test)]
    Simulated(Arc<Mutex<Option<clock::Uptime>>>),
}

impl Steady {
    fn moment(&self, wall: OffsetDateTime) -> Moment {
        let uptime = match self {
            Steady::Host => clock::uptime(),
            #[cfg(test)]
            Steady::Simulated(uptime) => *uptime.lock().unwrap(),
        };
        Moment { wall, uptime }
    }
}

#[derive(Debug, Default)]
struct Memory {
    /// Each event as of when it really was, by the wall clock of now.
    past: Past,
    /// What is known of when that was.
    dates: BTreeMap<u64, Dates>,
    /// And of when the certificate was there.
    issued: BTreeMap<u64, Dates>,
    /// When this process read what was there, and when it last compared the clocks.
    opened: Option<Moment>,
    settled: Option<Moment>,
    /// The clock was set, and what the file says of dates is not the best that is known.
    is_stale: bool,
    /// Of the orders that the CA has told us of.
    urls: BTreeMap<u64, String>,
    next_id: u64,
    lines: usize,
}

impl History {
    /// Reads what is there and still matters, and writes it anew: for the one process that orders,
    /// as to any other an order that is just being sent looks like one that a crash lost. Blocks on
    /// the disk.
    pub fn open(
        state: &StateDir,
        slug: &str,
        keep: Duration,
        now: OffsetDateTime,
    ) -> Result<History, StoreError> {
        History::open_by(Steady::Host, state, slug, keep, now)
    }

    fn open_by(
        steady: Steady,
        state: &StateDir,
        slug: &str,
        keep: Duration,
        now: OffsetDateTime,
    ) -> Result<History, StoreError> {
        let (history, is_there) = History::read(steady, state, slug, keep, now)?;
        if is_there && let Some(path) = &history.path {
            write_anew(path, &mut history.lock())?;
        }
        Ok(history)
    }

    /// And whether there was anything.
    fn read(
        steady: Steady,
        state: &StateDir,
        slug: &str,
        keep: Duration,
        now: OffsetDateTime,
    ) -> Result<(History, bool), StoreError> {
        let file = format!("{slug}.history.jsonl");
        let path = state.ledger_dir().join("authorities").join(file);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(StoreError::io("read", &path, error)),
        };
        let mut memory = Memory::default();
        for line in bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            match serde_json::from_slice(line) {
                Ok(line) => memory.take_in(line),
                // The last one may have been cut off by a crash.
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a line of the history is unreadable")
                }
            }
        }
        memory.open(&steady.moment(now), keep);
        let is_there = !bytes.is_empty();
        let history = History {
            path: Some(path),
            steady,
            memory: Mutex::new(memory),
        };
        Ok((history, is_there))
    }

    /// Reads what is there and changes nothing: for whoever is beside the process that orders.
    pub fn peek(
        state: &StateDir,
        slug: &str,
        keep: Duration,
        now: OffsetDateTime,
    ) -> Result<History, StoreError> {
        let (history, _) = History::read(Steady::Host, state, slug, keep, now)?;
        Ok(history)
    }

    /// One that is nowhere on disk, and so outlives a simulated crash as a whole.
    #[cfg(test)]
    pub(super) fn in_memory() -> History {
        // The times of a test do not pass on the host's clocks.
        History::simulated(Steady::Simulated(Arc::default()))
    }

    #[cfg(test)]
    pub(super) fn simulated(steady: Steady) -> History {
        History {
            path: None,
            steady,
            memory: Mutex::default(),
        }
    }

    /// What a restart makes of one that is nowhere on disk.
    #[cfg(test)]
    pub(super) fn reopen(&self, now: OffsetDateTime, keep: Duration) {
        self.lock().open(&self.steady.moment(now), keep);
    }

    /// Notes an order, on disk before this returns.
    pub fn order(
        &self,
        names: &[Name],
        exempt: bool,
        now: OffsetDateTime,
    ) -> Result<u64, StoreError> {
        let names = names.iter().map(Name::to_string).collect();
        let dates = Dates::new(&self.steady.moment(now));
        self.add(|id| Line::Order {
            id,
            dates,
            names,
            exempt,
        })
    }

    /// A place within the limits for an order that is about to be made, in memory alone, or the
    /// limit that it would break. One step: no two orders find the same place free.
    pub fn reserve(
        self: &Arc<History>,
        limits: &Limits,
        names: &[Name],
        now: OffsetDateTime,
    ) -> Result<Reservation, Broken> {
        let moment = self.steady.moment(now);
        let mut memory = self.lock();
        memory.settle(&moment);
        memory.forget(now, limits::memory(limits));
        if let Some(broken) = limits::order(now, limits, &memory.past, names, false) {
            return Err(broken);
        }
        let id = memory.next_id;
        memory.take_in(Line::Order {
            id,
            dates: Dates::new(&moment),
            names: names.iter().map(Name::to_string).collect(),
            exempt: false,
        });
        Ok(Reservation {
            history: Arc::clone(self),
            id,
            is_used: false,
        })
    }

    /// Notes a reserved order, on disk before this returns.
    fn commit(&self, id: u64) -> Result<(), StoreError> {
        let memory = self.lock();
        let Some(path) = &self.path else {
            return Ok(());
        };
        for line in memory.lines_of(id) {
            let mut bytes =
                serde_json::to_vec(&line).map_err(|error| StoreError::broken(path, error))?;
            bytes.push(b'\n');
            append(path, &bytes)?;
        }
        Ok(())
    }

    /// Notes where the CA keeps an order, as was found out later; once is enough.
    pub fn placed(&self, id: u64, url: &str) -> Result<(), StoreError> {
        if self.lock().urls.get(&id).is_some_and(|known| known == url) {
            return Ok(());
        }
        self.place(id, url, None)
    }

    /// Notes that the CA has taken an order, just now, and where it keeps it. The order counts from
    /// now on: the CA has dated it while it was under way, and this is no earlier, so that what is
    /// sent when a limit allows it by our dates is allowed by the CA's.
    pub fn accepted(&self, id: u64, url: &str, now: OffsetDateTime) -> Result<(), StoreError> {
        self.place(id, url, Some(Dates::new(&self.steady.moment(now))))
    }

    fn place(&self, id: u64, url: &str, answered: Option<Dates>) -> Result<(), StoreError> {
        let url = url.to_owned();
        self.add(|_| Line::Placed { id, url, answered }).map(|_| ())
    }

    /// Notes that the CA did not take an order, or did not answer, up to now: the CA may count it
    /// all the same, and have dated it as late as that.
    pub fn refused(&self, id: u64, now: OffsetDateTime) -> Result<(), StoreError> {
        let (name, answered) = (None, Some(Dates::new(&self.steady.moment(now))));
        self.add(|_| Line::Failed { id, name, answered })
            .map(|_| ())
    }

    /// Notes that the CA has issued for an order, whatever becomes of that here; once is enough.
    pub fn issued(&self, id: u64, now: OffsetDateTime) -> Result<(), StoreError> {
        if self.lock().issued.contains_key(&id) {
            return Ok(());
        }
        let dates = Dates::new(&self.steady.moment(now));
        self.add(|_| Line::Issued { id, dates }).map(|_| ())
    }

    /// Notes that the CA is told to issue for an order, on disk before this returns; once is enough.
    pub fn finalized(&self, id: u64) -> Result<(), StoreError> {
        if self.judge(|past| past.may_be_issued(id)) {
            return Ok(());
        }
        self.add(|_| Line::Finalized { id }).map(|_| ())
    }

    /// Notes that nobody goes on with an order, of which the CA has not said what became of it.
    /// Once it was told to issue, it may have done so, and goes on to count that: from now on, as
    /// it may have been just now.
    pub fn dropped(&self, id: u64, now: OffsetDateTime) -> Result<(), StoreError> {
        if self.judge(|past| past.may_be_issued(id)) {
            self.issued(id, now)?;
        }
        self.failed(id, None)
    }

    /// Notes that an order left no certificate, or none that is of any use, and which name was not
    /// validated.
    pub fn failed(&self, id: u64, name: Option<String>) -> Result<(), StoreError> {
        let answered = None;
        self.add(|_| Line::Failed { id, name, answered })
            .map(|_| ())
    }

    /// Notes an account, on disk before this returns.
    pub fn account(&self, now: OffsetDateTime) -> Result<u64, StoreError> {
        let dates = Dates::new(&self.steady.moment(now));
        self.add(|id| Line::Account { id, dates })
    }

    /// Decides over everything that may still matter; nothing is copied.
    pub fn judge<T>(&self, decide: impl FnOnce(&Past) -> T) -> T {
        decide(&self.lock().past)
    }

    /// Dates what happened by the wall clock of now, which may have been set meanwhile, and drops
    /// what does not matter any more.
    pub fn forget(&self, now: OffsetDateTime, keep: Duration) {
        let moment = self.steady.moment(now);
        let mut memory = self.lock();
        memory.settle(&moment);
        memory.forget(now, keep);
    }

    /// Whether the clock was set since what happened was dated last, or since the file was written.
    pub fn is_misdated(&self, now: OffsetDateTime) -> bool {
        let moment = self.steady.moment(now);
        let memory = self.lock();
        let before = memory.settled;
        memory.is_stale || before.is_some_and(|before| moment.was_set_since(&before))
    }

    /// Dates what happened by the clock of now, on disk before this returns: the next start of the
    /// host knows nothing of the uptime by which this one can.
    pub fn date(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        let moment = self.steady.moment(now);
        let mut memory = self.lock();
        memory.settle(&moment);
        match &self.path {
            Some(path) if memory.is_stale => write_anew(path, &mut memory),
            _ => {
                memory.is_stale = false;
                Ok(())
            }
        }
    }

    fn add(&self, line: impl FnOnce(u64) -> Line) -> Result<u64, StoreError> {
        let mut memory = self.lock();
        let id = memory.next_id;
        let line = line(id);
        let Some(path) = &self.path else {
            memory.take_in(line);
            return Ok(id);
        };
        let mut bytes =
            serde_json::to_vec(&line).map_err(|error| StoreError::broken(path, error))?;
        bytes.push(b'\n');
        // Known to this process even if the disk refuses: then nothing is sent, and it was one
        // attempt too many that is counted.
        memory.take_in(line);
        append(path, &bytes)?;
        let is_long = memory.lines > LINES_OF_AN_EVENT * memory.past.len() + MAX_STALE_LINES;
        if is_long || memory.is_stale {
            write_anew(path, &mut memory)?;
        }
        Ok(id)
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // One event is added or changed at a time: a panic cannot leave half of one.
        self.memory
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A place within the limits of a CA for an order that is about to be made. Where it comes to none,
/// dropping this gives the place up.
#[derive(Debug)]
pub struct Reservation {
    history: Arc<History>,
    id: u64,
    is_used: bool,
}

impl Reservation {
    /// The order is sent now: it is on disk before this returns. Answers its number.
    pub fn commit(mut self) -> Result<u64, StoreError> {
        self.history.commit(self.id)?;
        self.is_used = true;
        Ok(self.id)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.is_used {
            self.history.lock().drop_event(self.id);
        }
    }
}

fn append(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    if let Some(parent) = path.parent() {
        store::make_directory(parent)?;
    }
    let failed = |error| StoreError::io("append to", path, error);
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.sync_data().map_err(failed)
}

fn write_anew(path: &Path, memory: &mut Memory) -> Result<(), StoreError> {
    let mut bytes = Vec::new();
    let mut lines = 0;
    let events = memory.past.events();
    for line in events.flat_map(|(id, _)| memory.lines_of(id)) {
        serde_json::to_writer(&mut bytes, &line)
            .map_err(|error| StoreError::broken(path, error))?;
        bytes.push(b'\n');
        lines += 1;
    }
    atomic::write_file(path, &bytes, SECRET_FILE)?;
    memory.lines = lines;
    memory.is_stale = false;
    Ok(())
}

impl Memory {
    fn take_in(&mut self, line: Line) {
        self.lines += 1;
        let (id, dates, what) = match line {
            Line::Account { id, dates } => (id, dates, What::Account),
            Line::Order {
                id,
                dates,
                names,
                exempt,
            } => {
                let end = End::Sent;
                (id, dates, What::Order { names, exempt, end })
            }
            Line::Placed { id, url, answered } => {
                self.urls.insert(id, url);
                self.was_answered(id, answered);
                return self.past.end(id, End::Placed);
            }
            Line::Finalized { id } => return self.past.end(id, End::Finalized),
            Line::Issued { id, dates } => {
                let (at, is_over) = (dates.at, false);
                self.issued.insert(id, dates);
                return self.past.end(id, End::Issued { at, is_over });
            }
            Line::Failed { id, name, answered } => {
                self.was_answered(id, answered);
                return self.past.end(id, End::Failed(name));
            }
        };
        self.next_id = self.next_id.max(id + 1);
        self.past.add(id, Event { at: dates.at, what });
        self.dates.insert(id, dates);
    }

    /// From when on an order counts.
    fn was_answered(&mut self, id: u64, answered: Option<Dates>) {
        if let Some(dates) = answered
            && self.past.get(id).is_some()
        {
            self.past.redate(id, dates.at, None);
            self.dates.insert(id, dates);
        }
    }

    /// An event as it stands in the file; its date is the one from which on it counts.
    fn lines_of(&self, id: u64) -> Vec<Line> {
        let (Some(event), Some(dates)) = (self.past.get(id), self.dates.get(&id)) else {
            return Vec::new();
        };
        let dates = dates.clone();
        let What::Order { names, exempt, end } = &event.what else {
            return vec![Line::Account { id, dates }];
        };
        let order = Line::Order {
            id,
            dates,
            names: names.clone(),
            exempt: *exempt,
        };
        let placed = self.urls.get(&id).map(|url| Line::Placed {
            id,
            url: url.clone(),
            answered: None,
        });
        let finalized = matches!(end, End::Finalized).then_some(Line::Finalized { id });
        let issued = self.issued.get(&id);
        let issued = issued.map(|dates| Line::Issued {
            id,
            dates: dates.clone(),
        });
        let name = match end {
            End::Issued { is_over: true, .. } => Some(None),
            End::Failed(name) => Some(name.clone()),
            End::Sent | End::Placed | End::Finalized | End::Issued { .. } => None,
        };
        let failed = name.map(|name| Line::Failed {
            id,
            name,
            answered: None,
        });
        let all = [Some(order), placed, finalized, issued, failed];
        all.into_iter().flatten().collect()
    }

    /// This process has read it all.
    fn open(&mut self, now: &Moment, keep: Duration) {
        for dates in self.dates.values_mut().chain(self.issued.values_mut()) {
            dates.are_read(now);
        }
        // Nobody finalises an order whose URL is not on disk, so nobody has issued for it.
        for id in self.past.sent() {
            self.past.end(id, End::Failed(None));
        }
        (self.opened, self.settled) = (Some(*now), None);
        self.settle(now);
        self.forget(now.wall, keep);
    }

    /// Where the wall clock was set since the last look, every event moves with it.
    fn settle(&mut self, now: &Moment) {
        let opened = *self.opened.get_or_insert(*now);
        let before = self.settled;
        if before.is_some_and(|before| !now.was_set_since(&before)) {
            return;
        }
        for (id, dates) in &mut self.dates {
            let at = dates.settle(now, &opened);
            let issued = self.issued.get_mut(id);
            let issued = issued.map(|dates| dates.settle(now, &opened));
            self.past.redate(*id, at, issued);
        }
        self.is_stale = before.is_some();
        self.settled = Some(*now);
    }

    fn forget(&mut self, now: OffsetDateTime, keep: Duration) {
        for id in self.past.forget(now, keep) {
            self.drop_event(id);
        }
    }

    fn drop_event(&mut self, id: u64) {
        self.past.remove(id);
        self.dates.remove(&id);
        self.urls.remove(&id);
        self.issued.remove(&id);
    }
}

#[cfg(test)]
mod tests;
