//! The disk of the model: what happened on it since it was last looked at.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::pool::Identity;
use super::reference::{self, Layout, State};
use super::writers::Step;

pub struct Disk {
    pub layout: Layout,
    /// What file events would name that nobody has looked at yet.
    pub events: BTreeSet<PathBuf>,
    /// The pairs that were whole at some moment since the last look began.
    pub whole: BTreeSet<(PathBuf, Identity)>,
    /// Steps that are done between two readings of one look.
    pub meanwhile: VecDeque<Step>,
    /// Whether something was written since the file system's clock was seen to go on.
    written: bool,
    /// A file beside all that the reloader looks at.
    probe: PathBuf,
}

impl Disk {
    pub fn new(layout: Layout, probe: PathBuf) -> Disk {
        Disk {
            layout,
            events: BTreeSet::new(),
            whole: BTreeSet::new(),
            meanwhile: VecDeque::new(),
            written: false,
            probe,
        }
    }

    /// One step of a writer.
    pub fn step(&mut self, step: &Step) {
        println!("  {step}");
        step.run(&mut self.events);
        self.events_through_links();
        self.written = true;
        self.note_whole();
    }

    /// What is done while the reloader pauses between two readings.
    pub fn pass(&mut self) {
        for step in std::mem::take(&mut self.meanwhile) {
            print!("  meanwhile");
            self.step(&step);
        }
    }

    /// A look begins.
    pub fn begin_look(&mut self) {
        self.whole.clear();
        self.note_whole();
    }

    /// Waits until what is written next has another time than what was written last.
    pub fn tick(&mut self) {
        if !std::mem::take(&mut self.written) {
            return;
        }
        let first = self.touch_probe();
        while self.touch_probe() == first {}
    }

    fn touch_probe(&self) -> (i64, i64) {
        fs::write(&self.probe, "").unwrap();
        let metadata = fs::metadata(&self.probe).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    }

    fn note_whole(&mut self) {
        for (path, state) in reference::states(&self.layout) {
            if let State::Whole(identity) = state {
                self.whole.insert((path, identity));
            }
        }
    }

    /// An event where a link leads stands for the link.
    fn events_through_links(&mut self) {
        let mut links = Vec::new();
        links_below(&self.layout.folder, &mut links);
        for link in links {
            let Ok(target) = fs::read_link(&link) else {
                continue;
            };
            let target = link.parent().unwrap_or(Path::new("/")).join(target);
            let touched = |event: &PathBuf| event.parent() == target.parent();
            if self.events.iter().any(touched) {
                self.events.insert(link);
            }
        }
    }
}

fn links_below(directory: &Path, links: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_symlink() {
            links.push(path);
        } else if path.is_dir() {
            links_below(&path, links);
        }
    }
}
