//! A drop folder on a real file system: which pairs are found, and how often files are read.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::OffsetDateTime;

use super::folder::{FileReading, Folder, ToRead};
use super::inventory::EntryId;
use super::testing::{Pair, Request};
use super::unit::{Finding, Served, Task};
use crate::clock;

struct Scene {
    directory: tempfile::TempDir,
    folder: Folder,
}

impl Scene {
    fn new() -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::new(directory.path());
        Scene { directory, folder }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn write(&self, file: &str, content: &str) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn look(&mut self) -> Vec<Task> {
        self.look_when(clock::now())
    }

    fn look_when(&mut self, now: OffsetDateTime) -> Vec<Task> {
        let to_read = self.folder.survey_all();
        self.read(to_read, now, &mut Vec::new())
    }

    fn look_at(&mut self, file: &str) -> Vec<Task> {
        let to_read = self.folder.survey(&BTreeSet::from([self.path(file)]));
        self.read(to_read, clock::now(), &mut Vec::new())
    }

    fn read(
        &mut self,
        to_read: Vec<ToRead>,
        now: OffsetDateTime,
        gone: &mut Vec<EntryId>,
    ) -> Vec<Task> {
        let readings = to_read.into_iter().map(|file| FileReading::read(file, now));
        self.folder.take_in(readings.collect());
        self.folder.due(true, gone)
    }

    fn judge(&mut self, file: &str, finding: Finding, now: OffsetDateTime) {
        let path: Arc<Path> = self.path(file).into();
        self.folder
            .judge(&path, finding, Served::default(), time::Duration::ZERO, now)
            .unwrap();
    }

    /// The pairs that a look finds, as file names.
    fn pairs(&mut self) -> Vec<(String, Option<String>)> {
        let root = self.directory.path().to_owned();
        let name = |path: &Path| path.strip_prefix(&root).unwrap().display().to_string();
        let tasks = self.look();
        tasks
            .iter()
            .map(|task| {
                (
                    name(&task.id.certificate),
                    task.private_key.as_deref().map(name),
                )
            })
            .collect()
    }
}

fn pair(names: &[&str]) -> Pair {
    Request::new(names, clock::now()).issue()
}

fn pairs(expected: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
    expected
        .iter()
        .map(|(c, k)| ((*c).to_owned(), k.map(str::to_owned)))
        .collect()
}

#[test]
fn pairs_are_found_by_content_whatever_the_names() {
    let mut scene = Scene::new();
    let (a, b) = (pair(&["a.test"]), pair(&["b.test"]));
    scene.write("1", &a.key);
    scene.write("2.txt", &b.certificate);
    scene.write("deep/er/3", &a.certificate);
    scene.write("deep/4", &b.key);
    scene.write("both.pem", &format!("{}{}", a.key, a.certificate));
    scene.write("README", "nothing here");
    let expected = [
        ("2.txt", Some("deep/4")),
        ("both.pem", Some("both.pem")),
        // Beside it there is none: the first of all that fit.
        ("deep/er/3", Some("1")),
    ];
    assert_eq!(scene.pairs(), pairs(&expected));
}

#[test]
fn hidden_files_and_what_lies_too_deep_are_not_looked_at() {
    let mut scene = Scene::new();
    let a = pair(&["a.test"]);
    let both = format!("{}{}", a.certificate, a.key);
    for file in [".a.swp", "..data/tls.crt", ".git/a", "1/2/3/too-deep"] {
        scene.write(file, &both);
    }
    assert_eq!(scene.pairs(), vec![]);
    scene.write("1/2/deep-enough", &both);
    assert_eq!(
        scene.pairs(),
        pairs(&[("1/2/deep-enough", Some("1/2/deep-enough"))])
    );
}

#[test]
fn an_authority_is_no_leaf_without_its_key() {
    let mut scene = Scene::new();
    let chain = Request {
        intermediate: true,
        ..Request::new(&["a.test"], clock::now())
    }
    .issue();
    let begin = chain.certificate.rfind("-----BEGIN").unwrap();
    scene.write("chain.pem", &chain.certificate[begin..]);
    scene.write("fullchain.pem", &chain.certificate);
    scene.write("privkey.pem", &chain.key);
    assert_eq!(
        scene.pairs(),
        pairs(&[("fullchain.pem", Some("privkey.pem"))])
    );
}

#[test]
fn a_certificate_without_its_key_is_a_unit_that_fails() {
    let mut scene = Scene::new();
    let a = pair(&["a.test"]);
    scene.write("a.pem", &a.certificate);
    let tasks = scene.look();
    let finding = tasks[0].examine(clock::now());
    let Finding::Bad { path, cause } = finding else {
        panic!("{finding:?}")
    };
    assert_eq!(path, scene.path("a.pem"));
    assert!(cause.contains("no private key in"), "{cause}");
    // The key comes, and only it is looked at.
    scene.write("a.key", &a.key);
    let tasks = scene.look_at("a.key");
    assert!(matches!(
        tasks[0].examine(clock::now()),
        Finding::Good { .. }
    ));
}

#[test]
fn a_broken_key_that_turns_out_to_be_none_is_not_blamed_any_longer() {
    let mut scene = Scene::new();
    let (a, b) = (pair(&["a.test"]), pair(&["b.test"]));
    scene.write("a.pem", &a.certificate);
    scene.write("a.key", &a.key);
    let now = later();
    let good = scene.look_when(now)[0].examine(now);
    scene.judge("a.pem", good, now);
    scene.write("a.key", &a.key[..100]);
    let tasks = scene.look();
    let blamed = |tasks: &[Task]| tasks.iter().find_map(|task| task.private_key.clone());
    assert_eq!(blamed(&tasks).as_deref(), Some(&*scene.path("a.key")));
    for task in &tasks {
        let file = task.id.certificate.file_name().unwrap().to_str().unwrap();
        scene.judge(file, task.examine(now), now);
    }
    scene.write("a.key", &b.certificate);
    let tasks = scene.look_at("a.key");
    let files: Vec<&Path> = tasks.iter().map(|task| &*task.id.certificate).collect();
    assert!(files.contains(&&*scene.path("a.pem")), "{files:?}");
    assert_eq!(blamed(&tasks), None);
}

#[test]
fn a_link_that_leads_nowhere_is_seen_to_go() {
    let mut scene = Scene::new();
    let a = pair(&["a.test"]);
    scene.write("in/a.pem", &format!("{}{}", a.certificate, a.key));
    let now = later();
    let good = scene.look_when(now)[0].examine(now);
    scene.judge("in/a.pem", good, now);
    fs::remove_file(scene.path("in/a.pem")).unwrap();
    std::os::unix::fs::symlink("nowhere", scene.path("in/a.pem")).unwrap();
    let dangling = scene.look()[0].examine(now);
    assert!(matches!(dangling, Finding::Bad { .. }), "{dangling:?}");
    scene.judge("in/a.pem", dangling, now);
    fs::remove_dir_all(scene.path("in")).unwrap();
    let tasks = scene.look_at("in");
    assert!(matches!(tasks[0].examine(now), Finding::Absent));
}

#[test]
fn a_broken_file_that_turns_out_to_be_a_key_is_forgotten() {
    let mut scene = Scene::new();
    let a = pair(&["a.test"]);
    scene.write("x", &a.key[..100]);
    assert_eq!(scene.pairs(), pairs(&[("x", None)]));
    scene.write("x", &a.key);
    let mut gone = Vec::new();
    let to_read = scene.folder.survey_all();
    assert!(scene.read(to_read, clock::now(), &mut gone).is_empty());
    let gone: Vec<&Path> = gone.iter().map(|id| &*id.certificate).collect();
    assert_eq!(gone, [scene.path("x")]);
}

/// A time at which everything written by now has settled.
fn later() -> OffsetDateTime {
    clock::now() + time::Duration::seconds(10)
}

#[test]
fn what_did_not_change_is_not_read_again() {
    let mut scene = Scene::new();
    let a = pair(&["a.test"]);
    scene.write("a.pem", &a.certificate);
    scene.write("a.key", &a.key);
    let now = later();
    let tasks = scene.look_when(now);
    scene.judge("a.pem", tasks[0].examine(now), now);
    assert!(scene.folder.survey_all().is_empty());
    assert!(scene.folder.due(true, &mut Vec::new()).is_empty());
    assert!(!scene.folder.needs_recheck());
}

#[test]
fn what_was_read_once_is_examined_without_reading_it_again() {
    let mut scene = Scene::new();
    let a = pair(&["a.test"]);
    scene.write("a.pem", &a.certificate);
    scene.write("a.key", &a.key);
    let tasks = scene.look_when(later());
    fs::remove_file(scene.path("a.pem")).unwrap();
    fs::remove_file(scene.path("a.key")).unwrap();
    assert!(matches!(tasks[0].examine(later()), Finding::Good { .. }));
    assert!(matches!(tasks[0].examine_afresh(later()), Finding::Absent));
}

#[test]
fn a_pair_in_two_parts_of_a_load_is_found() {
    let mut scene = Scene::new();
    let a = pair(&["a.test"]);
    scene.write("a.pem", &a.certificate);
    scene.write("b.key", &a.key);
    let to_read = scene.folder.survey_all();
    let mut due = Vec::new();
    for file in to_read {
        scene.folder.take_in(vec![FileReading::read(file, later())]);
        due.push(scene.folder.due(false, &mut Vec::new()).len());
    }
    assert_eq!(due, [0, 1]);
    assert!(scene.folder.due(true, &mut Vec::new()).is_empty());
}

#[test]
fn what_goes_between_the_survey_and_the_reading_was_never_there() {
    let mut scene = Scene::new();
    let a = pair(&["a.test"]);
    scene.write("a.pem", &format!("{}{}", a.certificate, a.key));
    let to_read = scene.folder.survey_all();
    assert_eq!(to_read.len(), 1);
    fs::remove_file(scene.path("a.pem")).unwrap();
    assert!(scene.read(to_read, later(), &mut Vec::new()).is_empty());
    assert!(scene.folder.survey_all().is_empty());
    scene.write("a.pem", &format!("{}{}", a.certificate, a.key));
    assert_eq!(scene.look_when(later()).len(), 1);
}

#[test]
fn a_young_file_is_read_again() {
    let mut scene = Scene::new();
    let a = pair(&["a.test"]);
    scene.write("a.pem", &format!("{}{}", a.certificate, a.key));
    let now = clock::now();
    let tasks = scene.look_when(now);
    scene.judge("a.pem", tasks[0].examine(now), now);
    assert!(scene.folder.needs_recheck());
    let again = scene.look_when(now);
    assert!(matches!(
        again[0].examine(now),
        Finding::Same { young: true }
    ));
}

#[test]
fn the_same_size_and_an_older_modification_time_hide_nothing() {
    let mut scene = Scene::new();
    let (a, b) = (pair(&["a.test"]), pair(&["a.test"]));
    let both = |pair: &Pair| format!("{}{}", pair.certificate, pair.key);
    scene.write("a.pem", &both(&a));
    scene.look();
    let padded = format!("{:1$}", both(&b), both(&a).len());
    scene.write("a.pem", &padded);
    let file = fs::File::options()
        .write(true)
        .open(scene.path("a.pem"))
        .unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1))
        .unwrap();
    assert_eq!(scene.look().len(), 1);
}
