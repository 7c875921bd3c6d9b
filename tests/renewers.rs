//! One row for each way in which somebody else replaces a certificate file. Each row is run on an
//! explicit pair and in a drop folder at once; its tests find the change by events alone, and by
//! the poll alone. Handshakes go on without a pause meanwhile: old or new, and none fails.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;

use crate::reload::{EVENTS, POLL};
use crate::support::certs::{Leaf, NextKey, TestCa};
use crate::support::client::serial;
use crate::support::handshakes::Handshakes;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::site;
use crate::support::wait::{SOON, wait_until};
use crate::support::writers::Pair;

/// From the last write to the first handshake with the new certificate. The promise is 1 s; a
/// machine that runs other tests beside this one may take longer to look.
pub const LIMIT: Duration = Duration::from_secs(5);
/// Files that changed within this are read again without any event, which would hide that there
/// was none.
const SETTLED: Duration = Duration::from_millis(2500);

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

    /// Until nothing but what this stands for can find a change below these folders.
    pub async fn settle(self, folders: &[PathBuf]) {
        if self == FoundBy::Events {
            wait_until(SOON, "files that are not new", async || {
                let age = folders.iter().filter_map(|folder| age(folder)).min();
                age.is_none_or(|age| age > SETTLED).then_some(())
            })
            .await;
        }
    }
}

/// How long ago anything below a path changed last. `None`: there is nothing.
fn age(path: &Path) -> Option<Duration> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::symlink_metadata(path).ok()?;
    let changed = Duration::new(
        metadata.ctime().try_into().ok()?,
        metadata.ctime_nsec().try_into().ok()?,
    );
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let own = now.ok()?.saturating_sub(changed);
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
        sources: &[Source::Folder, Source::Pair],
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
        let (place, ca) = (Place::new(), TestCa::new());
        let sides: Vec<Side> = self
            .sources
            .iter()
            .map(|source| Side::build(*source, self, &place, &ca))
            .collect();
        let tables: String = sides.iter().map(Side::table).collect();
        let sites: String = sides
            .iter()
            .map(|side| site(side.name, "files", &["respond:hello"]))
            .collect();
        let config = format!("{}{tables}{sites}", found_by.table());
        let perennial = Perennial::run(place, &config).await;
        for side in &sides {
            wait_served(&perennial, side.name, &side.leaves[0].serial, SOON).await;
        }
        let folders: Vec<PathBuf> = sides.iter().map(|side| side.folder.clone()).collect();
        found_by.settle(&folders).await;
        join_all(sides.iter().map(|side| side.go(&perennial, &renew))).await;
    }
}

/// Until a name is served with this serial.
pub async fn wait_served(perennial: &Perennial, name: &str, wanted: &str, deadline: Duration) {
    let what = format!("serial {wanted} for {name}");
    wait_until(deadline, &what, async || {
        let served = serial(perennial.place.https, name).await.ok()?;
        (served == wanted).then_some(())
    })
    .await;
}

/// A certificate in one place of the configuration.
struct Side {
    source: Source,
    name: &'static str,
    folder: PathBuf,
    pair: Pair,
    /// The old one, then what replaces it.
    leaves: Vec<Leaf>,
}

impl Side {
    fn build(source: Source, row: Row, place: &Place, ca: &TestCa) -> Side {
        let (name, folder) = match source {
            Source::Pair => ("pair.example.test", "pair/tls"),
            Source::Folder => ("folder.example.test", "folder/tls"),
        };
        let mut leaves = vec![ca.leaf(&[name])];
        for number in 0..row.replacements {
            leaves.push(ca.successor(&leaves[number], &[name], row.key));
        }
        let folder = place.path(folder);
        std::fs::create_dir_all(folder.parent().expect("a folder")).expect("a folder");
        let pair = (row.build)(&folder, &leaves[0]);
        Side {
            source,
            name,
            folder,
            pair,
            leaves,
        }
    }

    /// The drop folder continues the `[certificates]` table and has to come first.
    fn table(&self) -> String {
        match self.source {
            Source::Pair => self.pair.table(),
            Source::Folder => format!("directories = [{:?}]\n", self.folder),
        }
    }

    async fn go(&self, perennial: &Perennial, renew: &impl AsyncFn(Turn<'_>)) {
        let handshakes = Handshakes::start(perennial.place.https, self.name);
        let turn = Turn {
            perennial,
            name: self.name,
            folder: &self.folder,
            pair: &self.pair,
            new: &self.leaves[1..],
        };
        renew(turn).await;
        let written = Instant::now();
        let serials: Vec<&str> = self.leaves.iter().map(|leaf| &*leaf.serial).collect();
        let newest = serials.last().expect("at least the old one");
        wait_served(perennial, self.name, newest, SOON).await;
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
    pub name: &'a str,
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
            let entry = self.perennial.certificate(self.name).await?;
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
