//! The whole way from disk to table under a random schedule: writers that are interrupted anywhere,
//! faults, events that come late or never, clocks that jump. After each look at the disk, what
//! is served has to be what a slow and obvious reading of the disk allows.

mod disk;
mod pool;
mod reference;
mod writers;

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use time::{Duration, OffsetDateTime};
use tokio::sync::broadcast;

use self::disk::Disk;
use self::pool::{Identity, NAMES, Pool};
use self::reference::{Entries, Layout, State};
use self::writers::{Place, Step};
use super::scan::Scope;
use super::thread::Thread;
use super::{Change, ChangeResult, PairFiles, Reloader, Report, Sources, Swapped};
use crate::certificate::inventory::{Entry, EntryId};
use crate::certificate::name::Name;
use crate::certificate::overdue::HostSet;
use crate::certificate::table::{LiveCertificate, Table};
use crate::certificate::unit::{PATIENCE, RECHECK};

/// How deep the drop folder is searched.
const DEPTH: usize = 3;

/// Steps of one world; each begins with an empty disk.
const STEPS: usize = 120;

/// Worlds of an ordinary run, about two seconds of work; PERENNIAL_TEST_ROUNDS asks for more.
const ROUNDS: u64 = 1;

/// Files that were just written are read again and again as long as they are young. With the clock
/// this far ahead of the disk's none of them is, and with the clock this far behind all are.
const APART: Duration = Duration::days(1);

/// A disk, the writers on it, and a reloader that looks at it when it is told to.
struct World {
    pool: &'static Pool,
    rng: StdRng,
    now: OffsetDateTime,
    /// That of the last look.
    patience: Duration,
    layout: Layout,
    places: Vec<Place>,
    /// What each writer is still about to do.
    scripts: Vec<VecDeque<Step>>,
    disk: Arc<Mutex<Disk>>,
    thread: Thread,
    reloader: Reloader,
    swaps: broadcast::Receiver<Swapped>,
    /// Whether the clock jumped since everything was looked at last.
    jumped: bool,
    _directory: tempfile::TempDir,
}

/// What was there before a look.
struct Before {
    entries: Entries,
    table: Table,
    report: Arc<Report>,
    /// The explicit pairs of which nothing was in doubt.
    settled: Vec<EntryId>,
}

impl World {
    fn new(seed: u64) -> World {
        let pool = Pool::get();
        let mut rng = StdRng::seed_from_u64(seed);
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let generations = root.join("state/certificates");
        let places = places(root);
        for place in &places {
            let (certificate, key) = place.paths();
            fs::create_dir_all(certificate.parent().unwrap()).unwrap();
            fs::create_dir_all(key.parent().unwrap()).unwrap();
            if let Place::Generation(directory) = place {
                fs::remove_dir(directory.join("current")).unwrap();
            }
        }
        let layout = Layout {
            pool,
            pairs: places[..EXPLICIT].iter().map(Place::paths).collect(),
            folder: root.join("folder"),
            generations: generations.clone(),
        };
        let (reloader, idle) = Reloader::prepare(Sources {
            pairs: layout.pairs.iter().map(pair_files).collect(),
            folders: vec![layout.folder.clone()],
            generations: Some(generations),
            on_demand: None,
            default_name: None,
            takeover: HostSet::default(),
            poll_interval: std::time::Duration::from_secs(5),
            watch: false,
        });
        let mut thread = idle.thread;
        let disk = Disk::new(layout.clone(), root.join("probe"));
        let disk = Arc::new(Mutex::new(disk));
        let shared = disk.clone();
        thread.pause = Box::new(move |_| shared.lock().unwrap().pass());
        let days = *[-30, -2, 2, 30].choose(&mut rng).unwrap();
        World {
            pool,
            now: pool.base + Duration::days(days),
            rng,
            patience: PATIENCE,
            layout,
            scripts: vec![VecDeque::new(); places.len()],
            places,
            disk,
            thread,
            swaps: reloader.swaps(),
            reloader,
            jumped: false,
            _directory: directory,
        }
    }

    /// Anything that can happen.
    fn happen(&mut self) {
        match self.rng.random_range(0..20) {
            0..9 => self.write(),
            9..13 => drop(self.look_at_events()),
            13 => drop(self.look_at_all(PATIENCE)),
            // On request nothing is given time to get better.
            14 => drop(self.look_at_all(Duration::ZERO)),
            15 => self.pass_time(),
            16 => self.jump(),
            17 => self.settle_by_events(),
            _ => self.settle_by_poll(),
        }
    }

    /// The next step of a writer, or several.
    fn write(&mut self) {
        for step in self.next_steps() {
            self.disk.lock().unwrap().step(&step);
        }
    }

    fn next_steps(&mut self) -> VecDeque<Step> {
        let which = self.rng.random_range(0..self.places.len());
        let (place, script) = (&self.places[which], &mut self.scripts[which]);
        if script.is_empty() {
            *script = match self.rng.random_ratio(1, 3) {
                true => place.harm(self.pool, &mut self.rng),
                false => place.renew(self.pool, &mut self.rng),
            };
        }
        let count = match self.rng.random() {
            true => 1,
            false => script.len(),
        };
        script.drain(..count).collect()
    }

    /// The clock goes to another day, mostly on. It keeps away from the disk's own.
    fn jump(&mut self) {
        let days = [-200, -50, -3, -1, 1, 3, 40, 100];
        self.now += Duration::days(*days.choose(&mut self.rng).unwrap());
        if (self.now - self.pool.base).abs() < APART {
            self.now += 2 * APART;
        }
        self.jumped = true;
        println!("now {}", self.now);
        self.disk.lock().unwrap().tick();
    }

    fn pass_time(&mut self) {
        self.now += Duration::milliseconds(self.rng.random_range(0..6_000));
        println!("pass time");
        let before = self.before();
        self.disk.lock().unwrap().begin_look();
        self.thread.pass_time(self.now);
        self.check(&before, &[]);
    }

    fn look_at_events(&mut self) -> Vec<Change> {
        let paths = std::mem::take(&mut self.disk.lock().unwrap().events);
        println!("look at {paths:?}");
        self.look(&Scope::Paths(paths), PATIENCE)
    }

    fn look_at_all(&mut self, patience: Duration) -> Vec<Change> {
        println!("look at all");
        self.disk.lock().unwrap().events.clear();
        self.jumped = false;
        self.look(&Scope::All, patience)
    }

    fn look(&mut self, scope: &Scope, patience: Duration) -> Vec<Change> {
        let meanwhile = match self.rng.random_ratio(1, 4) {
            true => self.next_steps(),
            false => VecDeque::new(),
        };
        self.look_while(meanwhile, scope, patience)
    }

    /// A look while a writer is at work.
    fn look_while(
        &mut self,
        meanwhile: VecDeque<Step>,
        scope: &Scope,
        patience: Duration,
    ) -> Vec<Change> {
        self.patience = patience;
        let before = self.before();
        {
            let mut disk = self.disk.lock().unwrap();
            // With the clock ahead no file is young: then its times have to tell.
            if self.now > self.pool.base {
                disk.tick();
            }
            disk.begin_look();
            disk.meanwhile = meanwhile;
        }
        let changes = self.thread.scan(scope, patience, self.now);
        for change in &changes {
            let cause = change.cause.as_deref().unwrap_or_default();
            println!(
                "{:?} {} {cause}",
                change.result,
                change.certificate.display()
            );
        }
        self.check(&before, &changes);
        // What found no pause to happen in happens now.
        self.disk.lock().unwrap().pass();
        changes
    }

    /// Looks as often as the reloader would if nothing happens any more, but without its poll.
    fn settle_by_events(&mut self) {
        println!("settle by events");
        if self.jumped {
            self.look_quietly(&Scope::All);
            self.jumped = false;
        }
        let paths = std::mem::take(&mut self.disk.lock().unwrap().events);
        println!("look at {paths:?}");
        self.look_quietly(&Scope::Paths(paths));
        self.look_again();
        self.check_settled();
        self.check_nothing_is_new();
    }

    fn settle_by_poll(&mut self) {
        println!("settle by poll");
        self.disk.lock().unwrap().events.clear();
        self.jumped = false;
        self.look_quietly(&Scope::All);
        self.look_again();
        self.look_quietly(&Scope::All);
        self.check_settled();
        self.check_nothing_is_new();
    }

    /// One more look at everything finds nothing that was missed before, and tells nothing twice.
    /// (That a pair is missing is told when nothing is left of what it served.)
    fn check_nothing_is_new(&mut self) {
        let before = self.thread.inventory.entries();
        let mut changes = self.look_quietly(&Scope::All);
        changes.retain(|change| {
            let known = before.keys().any(|id| id.certificate == change.certificate);
            known || change.result != ChangeResult::Failed
        });
        assert!(
            changes.is_empty(),
            "missed before or told twice: {changes:#?}"
        );
    }

    fn look_quietly(&mut self, scope: &Scope) -> Vec<Change> {
        self.look_while(VecDeque::new(), scope, PATIENCE)
    }

    /// As the reloader's thread does it as long as something is in doubt.
    fn look_again(&mut self) {
        for wait in [RECHECK, RECHECK, PATIENCE, RECHECK] {
            if self.thread.retry_at().is_some_and(|at| at < self.now) {
                self.look_quietly(&Scope::All);
            }
            if !self.thread.needs_recheck() {
                return;
            }
            self.now += wait;
            println!("look again");
            self.look_quietly(&Scope::Paths(BTreeSet::new()));
        }
    }

    fn before(&self) -> Before {
        let pairs = self.thread.pairs.iter().filter(|unit| !unit.is_failing());
        Before {
            entries: self.thread.inventory.entries(),
            settled: pairs.map(|unit| unit.id.clone()).collect(),
            table: Table::clone(&self.reloader.table().load()),
            report: self.reloader.report(),
        }
    }

    /// What has to hold after every look.
    fn check(&mut self, before: &Before, changes: &[Change]) {
        let report = self.reloader.report();
        let table = Table::clone(&self.reloader.table().load());
        assert_eq!(report.heartbeat, self.now);
        assert!(report.loads >= before.report.loads);
        assert!(report.failures >= before.report.failures);
        self.check_chains(before, &report.entries);
        for (id, entry) in &report.entries {
            self.check_entry(id, before.entries.get(id).map(|old| &**old), entry, changes);
        }
        self.check_told(before, &report.entries, changes);
        self.check_choices(&table, &report.entries);
        check_still_served(before, &table, &report.entries, changes);
        let told: BTreeSet<Name> = std::iter::from_fn(|| self.swaps.try_recv().ok())
            .flat_map(|names| names.to_vec())
            .collect();
        for name in NAMES {
            let name: Name = name.parse().unwrap();
            let same = match (before.table.get(&name), table.get(&name)) {
                (Some(old), Some(new)) => old.serves_the_same(new),
                (old, new) => old.is_none() && new.is_none(),
            };
            // A host below a wildcard hears of the wildcard.
            let wildcard = told.iter().any(|told| told.covers(&name));
            assert!(same || wildcard, "nobody was told that {name} changed");
        }
    }

    /// What is served is what was served, or what was whole on disk while we looked.
    fn check_entry(&self, id: &EntryId, old: Option<&Entry>, new: &Entry, changes: &[Change]) {
        let old_live = old.and_then(|entry| entry.live.as_ref());
        let path = id.certificate.to_path_buf();
        let Some(live) = &new.live else {
            // What had vanished goes when there is a better one; then the pair is missing.
            let vanished = old.is_some_and(|entry| !entry.on_disk);
            assert!(old_live.is_none() || vanished, "{path:?} lost what it had");
            assert!(new.failure.is_some(), "{path:?} is there for nothing");
            return;
        };
        if old_live.is_some_and(|old| Arc::ptr_eq(old, live)) {
            return;
        }
        let identity = self.pool.identity(&live.key);
        let whole = &self.disk.lock().unwrap().whole;
        assert!(
            whole.contains(&(path.clone(), identity)),
            "{path:?} serves {identity:?}, which was not there while we looked"
        );
        assert_eq!(pool::shown(&live.key), live.key.fingerprint(), "{path:?}");
        if let Some(old) = old_live {
            let (old, new) = (&old.key, &live.key);
            let worse = old.is_valid_at(self.now) && !new.is_valid_at(self.now);
            assert!(!worse, "{path:?} gave up {old:?} for {new:?}");
        }
        let told = changes.iter().filter(|change| {
            let swap = change.swap.as_ref();
            swap.is_some_and(|swap| Arc::ptr_eq(&swap.live, live))
        });
        assert_eq!(told.count(), 1, "{path:?}");
    }

    /// A chain that has become shorter may still be growing.
    fn check_chains(&self, before: &Before, entries: &Entries) {
        let chain = |entries: &Entries, id| {
            let live = entries.get(id)?.live.as_ref()?;
            Some(live.key.chain_length())
        };
        for id in &before.settled {
            let (old, new) = (chain(&before.entries, id), chain(entries, id));
            assert!(
                self.patience.is_zero() || new >= old,
                "{id:?} lost intermediates"
            );
        }
    }

    /// Each failure is told when it is new.
    fn check_told(&self, before: &Before, entries: &Entries, changes: &[Change]) {
        let failure = |entries: &Entries, id: &EntryId| {
            let failure = entries.get(id)?.failure.clone()?;
            Some((failure.path, failure.cause))
        };
        for (id, _) in entries {
            let old = failure(&before.entries, id);
            let new = failure(entries, id);
            let told = changes.iter().any(|change| {
                change.certificate == id.certificate
                    && matches!(change.result, ChangeResult::Failed | ChangeResult::Vanished)
            });
            assert_eq!(told, new.is_some() && new != old, "{id:?} {old:?} {new:?}");
        }
    }

    /// Everybody gets what the rules of the election say.
    fn check_choices(&self, table: &Table, entries: &Entries) {
        let hosts = NAMES
            .iter()
            .copied()
            .chain(["x.test", "x.b.test", "y.x.b.test", "test"]);
        for host in hosts {
            let host: Name = host.parse().unwrap();
            let chosen = reference::chosen(entries, &host, self.now);
            let choice = table.get(&host);
            let path = |live: &Arc<LiveCertificate>| (live.path.clone(), live.key.fingerprint());
            assert_eq!(
                choice.map(|choice| path(&choice.best)),
                chosen.as_ref().map(|(best, _)| path(best)),
                "{host}"
            );
            assert_eq!(
                choice
                    .and_then(|choice| choice.alternate.as_ref())
                    .map(path),
                chosen
                    .and_then(|(_, alternate)| alternate)
                    .as_ref()
                    .map(path),
                "the alternate for {host}"
            );
        }
    }

    /// Once nobody has written for a while and we have looked, what is whole is served and what is
    /// not is reported.
    fn check_settled(&self) {
        let states = reference::states(&self.layout);
        let entries = self.thread.inventory.entries();
        for (id, entry) in &entries {
            let state = match states.get(&*id.certificate) {
                Some(state) => state,
                None if reference::is_absent(&id.certificate) => &State::Absent,
                None => &State::Nothing,
            };
            let live = entry.live.as_ref();
            let served = live.map(|live| self.pool.identity(&live.key));
            match state {
                State::Whole(identity) if served == Some(*identity) => {
                    assert_eq!(entry.failure, None, "{id:?}");
                    assert!(entry.on_disk, "{id:?}");
                }
                State::Whole(identity) => {
                    let served = live.unwrap_or_else(|| panic!("{id:?} is not served"));
                    assert!(
                        served.key.is_valid_at(self.now) && !self.is_valid(*identity),
                        "{id:?} serves {served:?} and not {identity:?}"
                    );
                    assert!(entry.failure.is_some(), "{id:?}");
                }
                State::Faulty | State::Nothing | State::Absent => {
                    assert!(entry.failure.is_some(), "{id:?} is {state:?}: {entry:?}");
                    let gone = *state == State::Absent && live.is_some();
                    assert!(!gone || !entry.on_disk, "{id:?} is gone: {entry:?}");
                }
            }
        }
        for (path, state) in states {
            let known = entries.keys().any(|id| *id.certificate == *path);
            let is_nothing = matches!(state, State::Nothing | State::Absent);
            assert!(known || is_nothing, "{path:?} is {state:?}");
        }
    }

    fn is_valid(&self, identity: Identity) -> bool {
        let item = &self.pool.items[identity.item];
        item.not_before <= self.now && self.now <= item.not_after
    }
}

/// No name loses its certificate, except to one in the same file that does not have the name any
/// more. What has vanished may go while there is a better one; that one may then lose the name.
fn check_still_served(before: &Before, table: &Table, entries: &Entries, changes: &[Change]) {
    for name in NAMES {
        let name: Name = name.parse().unwrap();
        if before.table.get(&name).is_none() || table.get(&name).is_some() {
            continue;
        }
        let mut replaced = 0;
        for (id, old) in &before.entries {
            let Some(old) = old.live.as_ref().filter(|live| live.covers(&name)) else {
                continue;
            };
            let new = entries.get(id).and_then(|entry| entry.live.as_ref());
            replaced += usize::from(new.is_some_and(|new| !Arc::ptr_eq(new, old)));
            let vanished = changes.iter().any(|change| {
                change.certificate == id.certificate && change.result == ChangeResult::Vanished
            });
            assert!(
                new.map_or(vanished, |new| !Arc::ptr_eq(new, old)),
                "{name} is not served any more, though {id:?} has it"
            );
        }
        assert!(replaced > 0, "{name} is not served any more");
    }
}

/// So many of the places are explicit pairs.
const EXPLICIT: usize = 4;

fn places(root: &Path) -> Vec<Place> {
    let files = |certificate: &str, key: &str| Place::Files {
        certificate: root.join(certificate),
        key: root.join(key),
    };
    let generations = root.join("state/certificates");
    vec![
        files("pair/cert.pem", "pair/key.pem"),
        files("one/both.pem", "one/both.pem"),
        Place::Mount(root.join("mount")),
        Place::Live(root.join("live"), root.join("archive")),
        files("folder/a.crt", "folder/a.key"),
        files("folder/own/both.pem", "folder/own/both.pem"),
        files("folder/own/cert.pem", "folder/own/key.pem"),
        Place::Mount(root.join("folder/mount")),
        Place::Live(root.join("folder/live"), root.join("archive")),
        Place::Generation(generations.join("a.test/p256")),
        Place::Generation(generations.join("_wildcard.test/p256")),
    ]
}

fn pair_files((certificate, key): &(PathBuf, PathBuf)) -> PairFiles {
    PairFiles {
        certificate: certificate.clone(),
        private_key: key.clone(),
        password_file: None,
    }
}

#[test]
fn any_history_of_the_disk_keeps_the_invariants() {
    let number = |name: &str| Some(std::env::var(name).ok()?.parse::<u64>().unwrap());
    let first = number("PERENNIAL_TEST_SEED").unwrap_or_else(rand::random);
    let rounds = number("PERENNIAL_TEST_ROUNDS").unwrap_or(ROUNDS);
    for seed in (0..rounds).map(|round| first.wrapping_add(round)) {
        println!("PERENNIAL_TEST_SEED={seed}");
        let mut world = World::new(seed);
        world.look_at_all(Duration::ZERO);
        for _ in 0..STEPS {
            world.happen();
        }
    }
}
