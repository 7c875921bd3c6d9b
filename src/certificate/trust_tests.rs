//! Sets of files on a real file system, with a clock that the test moves.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use time::{Duration, OffsetDateTime};

use super::trust::{Fault, FileSet, Parsed, Purpose};
use super::unit::PATIENCE;
use crate::clock;

/// Two files; a line is a unit of weight, and `bad` in one of them makes it so.
struct Scene {
    folder: tempfile::TempDir,
    set: FileSet,
    published: Arc<Mutex<Vec<String>>>,
    now: OffsetDateTime,
}

impl Scene {
    fn new(one: &str, two: &str) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let published: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = published.clone();
        let files = ["one", "two"].map(|name| (Purpose::ClientCa, folder.path().join(name)));
        let set = FileSet::new(files.into(), move |contents, _| parse(contents, &log));
        let scene = Scene {
            folder,
            set,
            published,
            now: clock::now(),
        };
        scene.write("one", one);
        scene.write("two", two);
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        // Renamed over, so that the inode shows the change whatever the clock's grain is.
        let fresh = self.path("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, self.path(name)).unwrap();
    }

    /// Looks once more, this much later.
    fn look(&mut self, later: Duration) -> bool {
        self.now += later;
        self.set.look(PATIENCE, self.now)
    }

    fn last(&self) -> Option<String> {
        self.published.lock().unwrap().last().cloned()
    }

    fn failure(&self, file: usize) -> Option<String> {
        self.set.files()[file].failure.clone()
    }
}

fn parse(contents: &[Vec<u8>], log: &Arc<Mutex<Vec<String>>>) -> Result<Parsed, Fault> {
    let texts: Vec<String> = contents
        .iter()
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .collect();
    if let Some(file) = texts.iter().position(|text| text == "bad") {
        let cause = "is bad".to_owned();
        return Err(Fault { file, cause });
    }
    let (all, log) = (texts.join("+"), log.clone());
    Ok(Parsed {
        weight: all.lines().count(),
        not_after: vec![None, None],
        publish: Box::new(move || log.lock().unwrap().push(all)),
    })
}

const SETTLED: Duration = Duration::seconds(10);

#[test]
fn what_changed_is_published_once() {
    let mut scene = Scene::new("a", "b");
    assert!(scene.look(SETTLED));
    assert_eq!(scene.last().as_deref(), Some("a+b"));
    scene.write("one", "c");
    assert!(scene.look(SETTLED));
    assert_eq!(scene.last().as_deref(), Some("c+b"));
    // Written again with the same content.
    scene.write("one", "c");
    assert!(!scene.look(SETTLED));
    assert!(!scene.look(SETTLED));
    assert_eq!(scene.published.lock().unwrap().len(), 2);
}

#[test]
fn what_is_bad_keeps_the_last_good_and_is_reported_after_a_while() {
    let mut scene = Scene::new("a", "b");
    scene.look(SETTLED);
    scene.write("two", "bad");
    assert!(!scene.look(Duration::ZERO), "it may be a write under way");
    assert_eq!(scene.failure(1), None);
    assert!(scene.look(PATIENCE));
    assert_eq!(scene.failure(1).as_deref(), Some("is bad"));
    assert_eq!(scene.failure(0), None);
    assert_eq!(scene.last().as_deref(), Some("a+b"));
    assert!(!scene.look(Duration::SECOND), "it is no news any more");
    scene.write("two", "c");
    assert!(scene.look(Duration::ZERO));
    assert_eq!(scene.failure(1), None);
    assert_eq!(scene.last().as_deref(), Some("a+c"));
}

#[test]
fn what_vanishes_keeps_the_last_good() {
    let mut scene = Scene::new("a", "b");
    scene.look(SETTLED);
    std::fs::remove_file(scene.path("one")).unwrap();
    scene.look(Duration::ZERO);
    assert!(scene.look(PATIENCE));
    assert_eq!(scene.failure(0).as_deref(), Some("does not exist"));
    assert_eq!(scene.last().as_deref(), Some("a+b"));
    scene.write("one", "a");
    assert!(
        scene.look(Duration::ZERO),
        "back as it was: no failure left"
    );
    assert_eq!(scene.failure(0), None);
    assert_eq!(scene.published.lock().unwrap().len(), 1);
}

#[test]
fn what_shrank_just_now_may_still_grow() {
    let mut scene = Scene::new("1\n2\n3", "b");
    scene.look(Duration::ZERO);
    scene.write("one", "1");
    assert!(!scene.look(Duration::ZERO));
    assert_eq!(scene.last().as_deref(), Some("1\n2\n3+b"));
    assert!(scene.look(SETTLED));
    assert_eq!(scene.last().as_deref(), Some("1+b"));
}

#[test]
fn a_check_names_the_file_at_fault_and_publishes_nothing() {
    let scene = Scene::new("a", "bad");
    let (path, cause) = scene.set.check(scene.now).unwrap_err();
    assert_eq!(
        (path.as_path(), cause.as_str()),
        (&*scene.path("two"), "is bad")
    );
    assert!(Path::new(&path).exists() && scene.last().is_none());
}
