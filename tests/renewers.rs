//! One row for each way in which somebody else replaces a certificate file. Each row is run on an
//! explicit pair and on a drop folder side by side; its tests find the change by events alone, and by
//! the poll alone. Handshakes go on without a pause meanwhile: old or new, and none fails.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use time::OffsetDateTime;

use crate::reload::{EVENTS, LIMIT, NAME, POLL, start};
use crate::support::certs::{Leaf, NextKey, TestCa};
use crate::support::client::serial;
use crate::support::clock;
use crate::support::handshakes::Handshakes;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::wait::{SOON, wait_until};
use crate::support::writers::Pair;

/// Files that changed within this are read again without any event, which would hide that there
/// was none.
const SETTLED: Duration = Duration::from_millis(2250);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    Events,
    Poll,
}

impl FoundBy {
    /// The `[certificates]` table; what is appended to it continues that table.
    pub fn table(self) -> &'static str {
        match self {
            FoundBy::Events => EVENTS,
            FoundBy::Poll => POLL,
        }
    }

    /// Until nothing but what this stands for can find a change below a folder.
    pub async fn settle(self, folder: &Path) {
        if self == FoundBy::Events {
            wait_until(SOON, "files that are not new", async || {
                age(folder).filter(|age| *age > SETTLED)
            })
            .await;
        }
    }
}

/// How long ago anything at or below a path changed last. `None`: there is nothing.
fn age(path: &Path) -> Option<Duration> {
    let changed = std::fs::symlink_metadata(path).ok()?.ctime();
    let changed = OffsetDateTime::from_unix_timestamp(changed).ok()?;
    // Whole seconds: what looks older than it is would end the wait too early.
    let own = clock::now() - changed - time::Duration::SECOND;
    let own = Duration::try_from(own).unwrap_or_default();
    let below = std::fs::read_dir(path).into_iter().flatten().flatten();
    let ages = below.filter_map(|entry| age(&entry.path()));
    Some(ages.min().map_or(own, |youngest| youngest.min(own)))
}

/// How a certificate comes into the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Pair,
    Folder,
}

/// What is there before a row, and what it replaces it with.
#[derive(Clone, Copy)]
pub struct Row {
    build: fn(&Path, &Leaf) -> Pair,
    key: NextKey,
    sources: &'static [Source],
    replacements: usize,
}

impl Row {
    /// Two plain files; one new certificate with a new key.
    pub const PAIR: Row = Row {
        build: Pair::write,
        key: NextKey::New,
        sources: &[Source::Pair, Source::Folder],
        replacements: 1,
    };

    pub const fn built_by(self, build: fn(&Path, &Leaf) -> Pair) -> Row {
        Row { build, ..self }
    }

    pub const fn same_key(self) -> Row {
        Row {
            key: NextKey::Same,
            ..self
        }
    }

    pub const fn in_a_folder_only(self) -> Row {
        Row {
            sources: &[Source::Folder],
            ..self
        }
    }

    /// So many, one right after the other.
    pub const fn replaced(self, replacements: usize) -> Row {
        Row {
            replacements,
            ..self
        }
    }

    pub async fn run(self, found_by: FoundBy, renew: impl AsyncFn(Turn<'_>)) {
        let sides = self.sources.iter();
        let sides = sides.map(|source| Side::start(*source, self, found_by));
        let sides = join_all(sides).await;
        join_all(sides.iter().map(|side| side.go(found_by, &renew))).await;
    }
}

/// Until this serial is served.
pub async fn wait_served(perennial: &Perennial, wanted: &str, deadline: Duration) {
    let what = format!("serial {wanted}");
    wait_until(deadline, &what, async || {
        let served = serial(perennial.place.https, NAME).await.ok()?;
        (served == wanted).then_some(())
    })
    .await;
}

/// A certificate and a process that serves it and nothing else: a change beside it would have all
/// files looked at.
struct Side {
    source: Source,
    perennial: Perennial,
    folder: PathBuf,
    pair: Pair,
    /// The old one, then what replaces it.
    leaves: Vec<Leaf>,
}

impl Side {
    async fn start(source: Source, row: Row, found_by: FoundBy) -> Side {
        let (place, ca) = (Place::new(), TestCa::new());
        let mut leaves = vec![ca.leaf(&[NAME])];
        for number in 0..row.replacements {
            leaves.push(ca.successor(&leaves[number], &[NAME], row.key));
        }
        let folder = place.path("certificates/tls");
        std::fs::create_dir_all(place.path("certificates")).expect("a folder");
        let pair = (row.build)(&folder, &leaves[0]);
        let table = match source {
            Source::Pair => pair.table(),
            Source::Folder => format!("directories = [{folder:?}]\n"),
        };
        let perennial = start(place, &format!("{}{table}", found_by.table())).await;
        wait_served(&perennial, &leaves[0].serial, SOON).await;
        Side {
            source,
            perennial,
            folder,
            pair,
            leaves,
        }
    }

    async fn go(&self, found_by: FoundBy, renew: &impl AsyncFn(Turn<'_>)) {
        found_by.settle(&self.folder).await;
        let handshakes = Handshakes::start(self.perennial.place.https, NAME);
        let turn = Turn {
            perennial: &self.perennial,
            folder: &self.folder,
            pair: &self.pair,
            new: &self.leaves[1..],
        };
        renew(turn).await;
        let written = Instant::now();
        let serials: Vec<&str> = self.leaves.iter().map(|leaf| &*leaf.serial).collect();
        let newest = serials.last().expect("at least the old one");
        wait_served(&self.perennial, newest, SOON).await;
        let took = written.elapsed();
        handshakes.stop(&serials).await;
        eprintln!("{:?}: served {took:?} after the last write", self.source);
        assert!(took < LIMIT, "{:?}: served {took:?} late", self.source);
    }
}

/// What a writer works on.
#[derive(Clone, Copy)]
pub struct Turn<'a> {
    pub perennial: &'a Perennial,
    pub folder: &'a Path,
    pub pair: &'a Pair,
    /// One after the other.
    pub new: &'a [Leaf],
}

impl Turn<'_> {
    /// The new certificates in a folder of their own, as whoever copies them has them.
    pub fn source(&self) -> (tempfile::TempDir, Pair) {
        let folder = tempfile::tempdir().expect("a folder");
        let pair = Pair::write(folder.path(), &self.new[0]);
        (folder, pair)
    }

    /// Until `/status` says that what is on disk now is no good: only then has the program given
    /// up looking again and again.
    pub async fn wait_reported(&self) {
        wait_until(SOON, "/status to tell", async || {
            let entry = self.perennial.certificate(NAME).await?;
            entry["last_error"].is_string().then_some(())
        })
        .await;
    }
}

/// For each writer, a module of that name with its two tests.
#[macro_export]
macro_rules! rows {
    ($($writer:ident: $row:expr;)*) => {$(
        mod $writer {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn with_events() {
                $row.run($crate::renewers::FoundBy::Events, super::$writer).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn with_the_poll() {
                $row.run($crate::renewers::FoundBy::Poll, super::$writer).await;
            }
        }
    )*};
}
