//! What has to hold of the disk and of the table, by a slow and obvious reading of both.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::OffsetDateTime;

use super::DEPTH;
use super::pool::{Facts, Identity, Pool};
use crate::certificate::inventory::{Entry, EntryId};
use crate::certificate::name::Name;
use crate::certificate::observe::MAX_FILE_BYTES;
use crate::certificate::table::LiveCertificate;

/// What a place holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A certificate and its key, both whole.
    Whole(Identity),
    /// Something is there, and it is no pair.
    Faulty,
    /// Nothing is there that looks like a certificate.
    Nothing,
    /// There is no such file.
    Absent,
}

/// What the reloader is told to look at.
#[derive(Clone)]
pub struct Layout {
    pub pool: &'static Pool,
    /// The files of explicit pairs.
    pub pairs: Vec<(PathBuf, PathBuf)>,
    pub folder: PathBuf,
    pub generations: PathBuf,
}

/// The state of every file in which a certificate could be.
pub fn states(layout: &Layout) -> BTreeMap<PathBuf, State> {
    let pool = layout.pool;
    let mut states = BTreeMap::new();
    for (certificate, key) in &layout.pairs {
        states.insert(certificate.clone(), pair(pool, certificate, key));
    }
    for directory in subdirectories(&layout.generations) {
        for directory in subdirectories(&directory) {
            let certificate = directory.join("current/fullchain.pem");
            let key = directory.join("current/privkey.pem");
            let state = pair(pool, &certificate, &key);
            states.insert(certificate, state);
        }
    }
    let mut files = BTreeMap::new();
    walk(pool, &layout.folder, DEPTH, &mut files);
    let keys: BTreeSet<usize> = files
        .values()
        .flat_map(|facts| facts.keys.clone())
        .collect();
    for (path, facts) in files {
        let state = match facts.leaf {
            Some(leaf) if keys.contains(&pool.items[leaf.item].key) => State::Whole(leaf),
            Some(_) => State::Faulty,
            None if facts.broken => State::Faulty,
            None => State::Nothing,
        };
        states.insert(path, state);
    }
    states
}

fn pair(pool: &Pool, certificate: &Path, key: &Path) -> State {
    if is_absent(certificate) && is_absent(key) {
        return State::Absent;
    }
    match (read(pool, certificate), read(pool, key)) {
        (
            Some(Facts {
                leaf: Some(leaf), ..
            }),
            Some(Facts { keys, .. }),
        ) if keys.contains(&pool.items[leaf.item].key) => State::Whole(leaf),
        _ => State::Faulty,
    }
}

/// Whether there is not even a link.
pub fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err()
}

/// `None`: there is no file that is read.
fn read(pool: &Pool, path: &Path) -> Option<Facts> {
    let metadata = fs::metadata(path).ok()?;
    let is_read = metadata.is_file() && metadata.len() <= MAX_FILE_BYTES;
    is_read.then(|| pool.facts(&fs::read(path).unwrap()))
}

fn walk(pool: &Pool, directory: &Path, depth: usize, files: &mut BTreeMap<PathBuf, Facts>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if path.is_dir() && depth > 1 {
            walk(pool, &path, depth - 1, files);
        } else if let Some(facts) = read(pool, &path) {
            files.insert(path, facts);
        }
    }
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.is_dir() && !path.is_symlink())
        .collect()
}

pub type Entries = imbl::OrdMap<EntryId, Arc<Entry>>;

/// Design rule 2 for a host that a client asks for: valid now, then on disk, then exact before
/// wildcard, then source, newest start, longest chain, latest end, latest write. The best one, and
/// the best with another algorithm that stands as well and has the name in the same way.
pub fn chosen(
    entries: &Entries,
    host: &Name,
    now: OffsetDateTime,
) -> Option<(Arc<LiveCertificate>, Option<Arc<LiveCertificate>>)> {
    let mut covering: Vec<_> = entries
        .iter()
        .filter_map(|(id, entry)| {
            let live = entry.live.clone()?;
            let names = live.key.names();
            let exact = names.contains(host);
            let covers = exact || names.iter().any(|name| is_below(host, name));
            covers.then_some((id, entry, live, exact))
        })
        .collect();
    covering.sort_by_key(|(id, entry, live, exact)| {
        let key = &live.key;
        let valid = key.not_before() <= now && now <= key.not_after();
        Reverse((
            (valid, entry.on_disk, *exact),
            Reverse(live.source),
            (key.not_before(), key.chain_length(), key.not_after()),
            live.changed_at,
            *id,
        ))
    });
    let stands = |entry: &Entry, live: &LiveCertificate| {
        let valid = live.key.not_before() <= now && now <= live.key.not_after();
        (valid, entry.on_disk)
    };
    let (_, best_entry, best, best_exact) = covering.first()?;
    let alternate = covering.iter().find(|(_, entry, live, exact)| {
        exact == best_exact
            && live.key.algorithm() != best.key.algorithm()
            && stands(entry, live) >= stands(best_entry, best)
    });
    let alternate = alternate.map(|(_, _, live, _)| live.clone());
    Some((best.clone(), alternate))
}

/// Whether a wildcard name covers the host, label by label.
fn is_below(host: &Name, wildcard: &Name) -> bool {
    let (host, wildcard) = (host.to_string(), wildcard.to_string());
    let host: Vec<&str> = host.split('.').collect();
    let wildcard: Vec<&str> = wildcard.split('.').collect();
    wildcard[0] == "*" && host[0] != "*" && host[1..] == wildcard[1..]
}
