//! What was asked of one CA, by all certificates together, as long as its limits look back: one
//! line each in a file of the ledger, on disk before the request leaves. It records;
//! [`limits`](super::limits) decides what it means.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::limits::{End, Event, Past, What};
use crate::certificate::name::Name;
use crate::store::{self, SECRET_FILE, StateDir, StoreError, atomic};

/// Lines that are over before the file is written anew.
const MAX_STALE_LINES: usize = 4096;
/// An order, its URL and its failure.
const LINES_OF_AN_EVENT: usize = 3;

/// One line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Account {
        id: u64,
        #[serde(with = "time::serde::rfc3339")]
        at: OffsetDateTime,
    },
    Order {
        id: u64,
        #[serde(with = "time::serde::rfc3339")]
        at: OffsetDateTime,
        names: BTreeSet<String>,
        exempt: bool,
    },
    /// The CA has the order with this number under this URL. One without is an order that was
    /// not answered, or one that a crash lost.
    Placed { id: u64, url: String },
    /// The order with this number left no certificate.
    Failed { id: u64, name: Option<String> },
}

/// The history of one CA.
#[derive(Debug)]
pub struct History {
    /// `None`: in memory alone, for simulations.
    path: Option<PathBuf>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    past: Past,
    /// Of the orders that the CA has told us of.
    urls: BTreeMap<u64, String>,
    next_id: u64,
    lines: usize,
}

impl History {
    /// Reads what is there and still matters. Blocks on the disk.
    pub fn open(
        state: &StateDir,
        slug: &str,
        keep: Duration,
        now: OffsetDateTime,
    ) -> Result<History, StoreError> {
        let (history, is_there) = History::read(state, slug, keep, now)?;
        if is_there && let Some(path) = &history.path {
            write_anew(path, &mut history.lock())?;
        }
        Ok(history)
    }

    /// And whether there was anything.
    fn read(
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
        memory.forget(now, keep);
        let is_there = !bytes.is_empty();
        let history = History {
            path: Some(path),
            memory: Mutex::new(memory),
        };
        Ok((history, is_there))
    }

    /// Reads what is there and changes nothing: for commands beside a running server.
    pub fn peek(
        state: &StateDir,
        slug: &str,
        keep: Duration,
        now: OffsetDateTime,
    ) -> Result<History, StoreError> {
        let (history, _) = History::read(state, slug, keep, now)?;
        Ok(history)
    }

    /// One that is nowhere on disk, and so outlives a simulated crash as a whole.
    #[cfg(test)]
    pub(super) fn in_memory() -> History {
        History {
            path: None,
            memory: Mutex::default(),
        }
    }

    /// Notes an order, on disk before this returns.
    pub fn order(
        &self,
        names: &[Name],
        exempt: bool,
        now: OffsetDateTime,
    ) -> Result<u64, StoreError> {
        let names = names.iter().map(Name::to_string).collect();
        self.add(|id| Line::Order {
            id,
            at: now,
            names,
            exempt,
        })
    }

    /// An order that is about to be made, in memory alone.
    fn reserve(&self, names: &[Name], now: OffsetDateTime) -> u64 {
        let mut memory = self.lock();
        let id = memory.next_id;
        let names = names.iter().map(Name::to_string).collect();
        memory.take_in(Line::Order {
            id,
            at: now,
            names,
            exempt: false,
        });
        id
    }

    /// Notes a reserved order, on disk before this returns.
    fn commit(&self, id: u64) -> Result<(), StoreError> {
        let memory = self.lock();
        let event = memory.past.get(id);
        let (Some(path), Some(event)) = (&self.path, event) else {
            return Ok(());
        };
        for line in lines_of(id, event, None) {
            let mut bytes =
                serde_json::to_vec(&line).map_err(|error| StoreError::broken(path, error))?;
            bytes.push(b'\n');
            append(path, &bytes)?;
        }
        Ok(())
    }

    /// Notes where the CA keeps an order; once is enough.
    pub fn placed(&self, id: u64, url: &str) -> Result<(), StoreError> {
        if self.lock().urls.get(&id).is_some_and(|known| known == url) {
            return Ok(());
        }
        let url = url.to_owned();
        self.add(|_| Line::Placed { id, url }).map(|_| ())
    }

    /// Notes that an order left no certificate, and which name was not validated.
    pub fn failed(&self, id: u64, name: Option<String>) -> Result<(), StoreError> {
        self.add(|_| Line::Failed { id, name }).map(|_| ())
    }

    /// Notes an account, on disk before this returns.
    pub fn account(&self, now: OffsetDateTime) -> Result<u64, StoreError> {
        self.add(|id| Line::Account { id, at: now })
    }

    /// Decides over everything that may still matter; nothing is copied.
    pub fn judge<T>(&self, decide: impl FnOnce(&Past) -> T) -> T {
        decide(&self.lock().past)
    }

    /// Drops what does not matter any more.
    pub fn forget(&self, now: OffsetDateTime, keep: Duration) {
        self.lock().forget(now, keep);
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
        if memory.lines > LINES_OF_AN_EVENT * memory.past.len() + MAX_STALE_LINES {
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
    pub(super) fn new(history: &Arc<History>, names: &[Name], now: OffsetDateTime) -> Reservation {
        Reservation {
            history: Arc::clone(history),
            id: history.reserve(names, now),
            is_used: false,
        }
    }

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
            self.history.lock().past.remove(self.id);
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
    memory.lines = 0;
    for line in memory
        .past
        .events()
        .flat_map(|(id, event)| lines_of(id, event, memory.urls.get(&id)))
    {
        serde_json::to_writer(&mut bytes, &line)
            .map_err(|error| StoreError::broken(path, error))?;
        bytes.push(b'\n');
        memory.lines += 1;
    }
    atomic::write_file(path, &bytes, SECRET_FILE)
}

fn lines_of(id: u64, event: &Event, url: Option<&String>) -> Vec<Line> {
    let at = event.at;
    match &event.what {
        What::Account => vec![Line::Account { id, at }],
        What::Order { names, exempt, end } => {
            let order = Line::Order {
                id,
                at,
                names: names.clone(),
                exempt: *exempt,
            };
            let placed = url.map(|url| Line::Placed {
                id,
                url: url.clone(),
            });
            let failed = match end {
                End::Issued => None,
                End::Failed(name) => Some(Line::Failed {
                    id,
                    name: name.clone(),
                }),
            };
            [Some(order), placed, failed]
                .into_iter()
                .flatten()
                .collect()
        }
    }
}

impl Memory {
    fn take_in(&mut self, line: Line) {
        self.lines += 1;
        let (id, event) = match line {
            Line::Account { id, at } => (
                id,
                Event {
                    at,
                    what: What::Account,
                },
            ),
            Line::Order {
                id,
                at,
                names,
                exempt,
            } => {
                let end = End::Issued;
                let what = What::Order { names, exempt, end };
                (id, Event { at, what })
            }
            Line::Placed { id, url } => {
                self.urls.insert(id, url);
                return;
            }
            Line::Failed { id, name } => return self.past.end(id, End::Failed(name)),
        };
        self.next_id = self.next_id.max(id + 1);
        self.past.add(id, event);
    }

    fn forget(&mut self, now: OffsetDateTime, keep: Duration) {
        for id in self.past.forget(now, keep) {
            self.urls.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-25 12:00 UTC);
    const WEEK: Duration = Duration::days(7);

    fn past_of(history: &History) -> Vec<Event> {
        history.judge(|past| past.events().map(|(_, event)| event.clone()).collect())
    }

    #[test]
    fn what_was_asked_is_known_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let open = |now| History::open(&state, "ca", WEEK, now).unwrap();
        let history = open(NOW);
        assert!(past_of(&history).is_empty());
        let names = ["a.test".parse().unwrap(), "*.a.test".parse().unwrap()];
        history.account(NOW).unwrap();
        let first = history.order(&names, false, NOW).unwrap();
        history
            .order(&names[..1], true, NOW + Duration::DAY)
            .unwrap();
        history.failed(first, Some("a.test".to_owned())).unwrap();
        history.placed(first, "https://ca.test/order/1").unwrap();
        let past = past_of(&history);
        assert_eq!(past.len(), 3);
        // Opening writes it anew: the second one reads what the first has written.
        for _ in 0..2 {
            let again = open(NOW + Duration::DAY);
            assert_eq!(past_of(&again), past);
            let urls = again.lock().urls.clone();
            assert_eq!(urls, [(first, "https://ca.test/order/1".to_owned())].into());
        }
        // Half a line at the end, as a crash leaves it, costs nothing else.
        let path = state.ledger_dir().join("authorities/ca.history.jsonl");
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"order\":{\"id\":9,");
        fs::write(&path, text).unwrap();
        assert_eq!(past_of(&open(NOW + Duration::DAY)), past);
        let later = open(NOW + WEEK);
        assert_eq!(past_of(&later), past[2..]);
        assert!(later.lock().urls.is_empty());
        assert_eq!(later.order(&names, false, NOW + WEEK).unwrap(), 3);
        let mode = fs::metadata(&path).unwrap();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
            0o600
        );
    }

    #[test]
    fn a_place_within_the_limits_is_taken_at_once_and_given_up_where_nothing_is_sent() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let open = || Arc::new(History::open(&state, "ca", WEEK, NOW).unwrap());
        let history = open();
        let names = ["a.test".parse().unwrap()];
        let first = Reservation::new(&history, &names, NOW);
        let second = Reservation::new(&history, &names, NOW);
        assert_eq!(past_of(&history).len(), 2);
        assert!(past_of(&open()).is_empty(), "nothing was sent yet");
        let id = first.commit().unwrap();
        drop(second);
        assert_eq!(past_of(&history).len(), 1);
        history.failed(id, Some("a.test".to_owned())).unwrap();
        assert_eq!(past_of(&open()), past_of(&history));
    }
}
