//! What is not needed any more: generations before the last two, certificates that no site has had
//! for a month, those on demand that nobody has asked for since they expired a month ago, and
//! archived ones that have expired. It looks at each file once, knows its own
//! files by their form, and touches no others.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::atomic::{sync_directory, write_file};
use super::{SECRET_FILE, StateDir, StoreError, generation, make_directory};

/// A site that is taken out by mistake is found again within a month.
pub const UNUSED_KEPT: Duration = Duration::days(30);
/// So long an archived certificate stays at least. Its key may be needed for as long as it is
/// valid, to revoke it; once it has expired, it is good for nothing.
pub const ARCHIVED_KEPT: Duration = Duration::days(30);

/// Since when certificates are unused, by their place below `certificates/`.
#[derive(Default, Serialize, Deserialize)]
struct Unused(BTreeMap<String, Since>);

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Since(#[serde(with = "time::serde::rfc3339")] OffsetDateTime);

/// What a sweep has done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Generations that were removed.
    pub generations: usize,
    /// Where unused certificates are now.
    pub archived: Vec<PathBuf>,
    /// Archived certificates that were removed.
    pub removed: Vec<PathBuf>,
}

impl Swept {
    pub fn is_nothing(&self) -> bool {
        *self == Swept::default()
    }
}

/// Sweeps once. `used`: the directories that a site's certificates are in, as
/// [`StateDir::certificate_dir`] names them. Safe beside orders that write: what they write is
/// newer than what is removed. Blocks on the disk; wants the writer's lock to be held.
pub fn sweep(
    state: &StateDir,
    used: &HashSet<PathBuf>,
    now: OffsetDateTime,
) -> Result<Swept, StoreError> {
    let mut swept = Swept::default();
    let path = state.ledger_dir().join("unused.json");
    let before = read_unused(&path);
    let mut after = Unused::default();
    let root = state.certificates_dir();
    for name in directories(&root) {
        for dir in directories(&name) {
            swept.generations += generation::remove_old(&dir);
            if used.contains(&dir) || !is_ours(&dir) {
                continue;
            }
            let place = dir.strip_prefix(&root).unwrap_or(&dir);
            let place = place.to_string_lossy().into_owned();
            let since = before.0.get(&place).map_or(now, |since| since.0.min(now));
            match now - since >= UNUSED_KEPT {
                true => swept.archived.push(archive(state, &dir, now)?),
                false => drop(after.0.insert(place, Since(since))),
            }
        }
    }
    if before.0 != after.0 {
        let bytes =
            serde_json::to_vec_pretty(&after).map_err(|error| StoreError::broken(&path, error))?;
        write_file(&path, &bytes, SECRET_FILE)?;
    }
    sweep_on_demand(state, now, &mut swept)?;
    swept.removed = remove_expired(state, now);
    Ok(swept)
}

/// What is had on demand is renewed as long as somebody asks for it.
fn sweep_on_demand(
    state: &StateDir,
    now: OffsetDateTime,
    swept: &mut Swept,
) -> Result<(), StoreError> {
    for name in directories(&state.on_demand_dir()) {
        for dir in directories(&name) {
            swept.generations += generation::remove_old(&dir);
            if is_forgotten(&dir, now) && is_ours(&dir) {
                swept.archived.push(archive(state, &dir, now)?);
            }
        }
    }
    Ok(())
}

/// Whether it expired a month ago. What cannot be read is not judged, and stays.
fn is_forgotten(dir: &Path, now: OffsetDateTime) -> bool {
    // Of many, few are so old: the link alone tells that of the others.
    let link = fs::read_link(dir.join(generation::CURRENT)).ok();
    let id = link.as_deref().and_then(Path::to_str);
    let written_at = id.and_then(generation::time_of_id);
    if written_at.is_none_or(|at| now - at < UNUSED_KEPT) {
        return false;
    }
    let stored = generation::read_current(dir).ok().flatten();
    stored.is_some_and(|stored| now - stored.leaf.not_after >= UNUSED_KEPT)
}

/// What cannot be read counts as if there were nothing: then everything stays a month longer.
fn read_unused(path: &Path) -> Unused {
    let bytes = fs::read(path).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Puts a certificate with all its generations away: from `certificates/<name>/<key_type>` to
/// `archive/<name>/<key_type>/<when>`, in one rename. Answers where it is then.
pub fn archive(state: &StateDir, dir: &Path, now: OffsetDateTime) -> Result<PathBuf, StoreError> {
    if !is_ours(dir) {
        let cause = "there are files in it that are not ours; move them away first";
        return Err(StoreError::broken(dir, cause));
    }
    let root = state.certificates_dir();
    let on_demand = state.on_demand_dir();
    let place = dir.strip_prefix(&root);
    let place = place.or_else(|_| dir.strip_prefix(&on_demand));
    let place =
        place.map_err(|_| StoreError::broken(dir, "no certificate of ours is kept there"))?;
    let parent = state.archive_dir().join(place);
    make_directory(&parent)?;
    let target = parent.join(generation::next_id(&parent, now)?);
    move_directory(dir, &target)?;
    Ok(target)
}

/// In one rename, and on disk when this returns.
pub(super) fn move_directory(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(|error| StoreError::io("move", from, error))?;
    for parent in [to, from].into_iter().filter_map(Path::parent) {
        sync_directory(parent)?;
    }
    // It stays where it has another key type.
    let _ = from.parent().map(fs::remove_dir);
    Ok(())
}

/// The directories that hold certificates called after `name`.
pub fn directories_of(state: &StateDir, name: &crate::certificate::name::Name) -> Vec<PathBuf> {
    let roots = [state.certificates_dir(), state.on_demand_dir()];
    let each = roots.iter().map(|root| root.join(super::component(name)));
    each.flat_map(|path| directories(&path)).collect()
}

fn remove_expired(state: &StateDir, now: OffsetDateTime) -> Vec<PathBuf> {
    let mut removed = Vec::new();
    for name in directories(&state.archive_dir()) {
        for kind in directories(&name) {
            for dir in directories(&kind) {
                if is_over(&dir, now) && remove(&dir) {
                    removed.push(dir);
                }
            }
            // Both stay where something is left in them.
            let _ = fs::remove_dir(&kind);
        }
        let _ = fs::remove_dir(&name);
    }
    removed
}

/// What cannot be read is not judged, and stays.
fn is_over(dir: &Path, now: OffsetDateTime) -> bool {
    let id = dir.file_name().and_then(|name| name.to_str());
    let archived_at = id.and_then(generation::time_of_id);
    let long_ago = archived_at.is_some_and(|at| now - at >= ARCHIVED_KEPT);
    let expired = || match generation::read_current(dir) {
        Ok(Some(stored)) => stored.leaf.not_after < now,
        _ => false,
    };
    long_ago && is_ours(dir) && expired()
}

fn remove(dir: &Path) -> bool {
    match fs::remove_dir_all(dir) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(path = %dir.display(), %error, "cannot remove an archived certificate");
            false
        }
    }
}

/// Whether all that is in a certificate's directory has a name that we give.
fn is_ours(dir: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(dir) else {
        return false;
    };
    entries.all(|entry: io::Result<fs::DirEntry>| {
        let name = entry.map(|entry| entry.file_name());
        name.is_ok_and(|name| name.to_str().is_some_and(generation::is_own_name))
    })
}

pub(super) fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    entries.map(|entry| entry.path()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::KeyType;
    use crate::store::generation::{Generation, Meta, Source};
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-11-26 0:00 UTC);

    fn put(state: &StateDir, name: &str, not_after: OffsetDateTime) -> PathBuf {
        let parsed = name.parse().unwrap();
        put_into(
            state.certificate_dir(&parsed, KeyType::P256),
            name,
            not_after,
        )
    }

    pub fn put_into(dir: PathBuf, name: &str, not_after: OffsetDateTime) -> PathBuf {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = not_after - Duration::days(90);
        params.not_after = not_after;
        let name = name.parse().unwrap();
        let meta = Meta::new(Source::Acme, &[name], KeyType::P256, params.not_before);
        let generation = Generation {
            fullchain_pem: &params.self_signed(&key).unwrap().pem(),
            private_key_pem: &key.serialize_pem(),
            meta: &meta,
        };
        generation::write(&dir, &generation).unwrap();
        dir
    }

    fn state() -> (tempfile::TempDir, StateDir) {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        (directory, state)
    }

    #[test]
    fn unused_certificates_are_kept_a_month_and_then_archived() {
        let (_directory, state) = state();
        let used = put(&state, "used.test", NOW + Duration::days(60));
        let unused = put(&state, "unused.test", NOW + Duration::days(60));
        let of_others = put(&state, "others.test", NOW + Duration::days(60));
        fs::write(of_others.join("notes.txt"), "mine").unwrap();
        let in_use = HashSet::from([used.clone()]);
        let sweep = |now| sweep(&state, &in_use, now).unwrap();
        for day in [0, 29] {
            assert!(sweep(NOW + Duration::days(day)).is_nothing(), "day {day}");
        }
        let swept = sweep(NOW + Duration::days(30));
        assert_eq!(swept.archived.len(), 1);
        let stored = generation::read_current(&swept.archived[0])
            .unwrap()
            .unwrap();
        assert_eq!(stored.meta.names, ["unused.test"]);
        assert!(!unused.exists() && !unused.parent().unwrap().exists());
        assert!(used.exists() && of_others.exists());
        // And nothing happens twice.
        assert!(sweep(NOW + Duration::days(31)).is_nothing());
    }

    #[test]
    fn what_nobody_asks_for_any_more_is_archived_a_month_after_it_has_expired() {
        let (_directory, state) = state();
        let put = |name: &str, not_after| {
            let parsed = name.parse().unwrap();
            let dir = state.on_demand_certificate_dir(&parsed, KeyType::P256);
            put_into(dir, name, not_after)
        };
        // Generations are called after the clock.
        let now = crate::clock::now();
        let forgotten = put("forgotten.test", now);
        let renewed = put("renewed.test", now);
        put("renewed.test", now + Duration::days(80));
        let later = |days| now + Duration::days(days) + Duration::minutes(1);
        let sweep = |day| sweep(&state, &HashSet::new(), later(day)).unwrap();
        assert!(sweep(29).is_nothing());
        let swept = sweep(30);
        assert_eq!(swept.archived.len(), 1);
        assert!(!forgotten.exists() && renewed.exists());
        assert_eq!(sweep(60).removed, swept.archived);
    }

    #[test]
    fn what_is_used_again_is_kept_a_month_anew() {
        let (_directory, state) = state();
        let dir = put(&state, "a.test", NOW + Duration::days(90));
        let in_use = HashSet::from([dir.clone()]);
        sweep(&state, &HashSet::new(), NOW).unwrap();
        sweep(&state, &in_use, NOW + Duration::days(20)).unwrap();
        let later = NOW + Duration::days(35);
        assert!(sweep(&state, &HashSet::new(), later).unwrap().is_nothing());
        assert!(dir.exists());
    }

    #[test]
    fn archived_ones_go_when_they_have_expired() {
        let (_directory, state) = state();
        let dir = put(&state, "a.test", NOW + Duration::days(60));
        let archived = archive(&state, &dir, NOW).unwrap();
        let sweep = |day| sweep(&state, &HashSet::new(), NOW + Duration::days(day)).unwrap();
        for day in [1, 31, 59] {
            assert!(sweep(day).is_nothing(), "day {day}");
        }
        assert_eq!(sweep(61).removed, std::slice::from_ref(&archived));
        assert!(!archived.exists());
        // One that had expired before is kept for a month all the same.
        let dir = put(&state, "a.test", NOW - Duration::days(1));
        let archived = archive(&state, &dir, NOW).unwrap();
        assert!(sweep(29).is_nothing());
        fs::write(archived.join("notes.txt"), "mine").unwrap();
        assert!(sweep(31).is_nothing());
        fs::remove_file(archived.join("notes.txt")).unwrap();
        assert_eq!(sweep(31).removed, [archived]);
    }

    #[test]
    fn generations_before_the_last_two_go_and_newer_ones_stay() {
        let (_directory, state) = state();
        let dir = put(&state, "a.test", NOW + Duration::days(60));
        put(&state, "a.test", NOW + Duration::days(61));
        let current = fs::read_link(dir.join(generation::CURRENT)).unwrap();
        for id in ["20200101T000000Z-0001", "20200102T000000Z-0001"] {
            fs::create_dir(dir.join(id)).unwrap();
        }
        // One that is being written just now.
        fs::create_dir(dir.join("29990101T000000Z-0001")).unwrap();
        let in_use = HashSet::from([dir.clone()]);
        assert_eq!(sweep(&state, &in_use, NOW).unwrap().generations, 2);
        assert!(dir.join(current).exists());
        assert!(dir.join("29990101T000000Z-0001").exists());
        assert_eq!(directories(&dir).len(), 3);
    }

    #[test]
    fn with_others_files_in_it_nothing_is_archived() {
        let (_directory, state) = state();
        let dir = put(&state, "a.test", NOW);
        fs::write(dir.join("notes.txt"), "mine").unwrap();
        let error = archive(&state, &dir, NOW).unwrap_err().to_string();
        assert!(error.contains("not ours"), "{error}");
        assert!(dir.exists());
    }
}
