//! Taking out what is not needed: once a day by itself, and at people's word. What is served stays
//! served, as long as the process lives and nothing better is there.

use std::collections::HashSet;
use std::path::PathBuf;

use time::{Duration, OffsetDateTime};

use super::Worker;
use super::handle::RenewError;
use crate::acme::account::blocking;
use crate::certificate::name::Name;
use crate::clock;
use crate::store::places::put_in_place;
use crate::store::sweep::{archive, directories_of, sweep};
use crate::store::{StateDir, StoreError};

const SWEEP_INTERVAL: Duration = Duration::DAY;

/// What was taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Where it is now.
    pub archived: Vec<PathBuf>,
    /// Whether a site has the name, so that a new certificate is ordered.
    pub used: bool,
}

impl Worker {
    /// Sweeps the state directory when it is time: once a day, not while others write to it, and
    /// not before everything is served.
    pub(super) async fn sweep_if_due(&mut self, now: OffsetDateTime) {
        let due = now >= self.sweep_at || self.sweep_at - now > SWEEP_INTERVAL;
        if !due || self.lock.is_none() || !self.is_loaded() {
            return;
        }
        self.sweep_at = now + SWEEP_INTERVAL;
        let used = self.desk.entries();
        let used: HashSet<PathBuf> = used.flat_map(|(_, entry)| entry.directories()).collect();
        let state = self.state.clone();
        match blocking(move || sweep(&state, &used, now)).await {
            Ok(swept) if swept.is_nothing() => {}
            Ok(swept) => {
                tracing::info!(
                    generations = swept.generations,
                    archived = ?swept.archived,
                    removed = ?swept.removed,
                    "cleaned up the state directory"
                );
            }
            Err(error) => tracing::warn!(%error, "cannot clean up the state directory"),
        }
    }

    /// Puts certificates where the configuration looks for them now.
    pub(super) async fn put_in_place(&self) {
        if self.lock.is_none() {
            return;
        }
        let subjects = self.assignment.subjects.iter();
        let dirs = subjects.map(|subject| self.directory(subject, false));
        let of_sites = dirs
            .filter_map(|dir| Some(dir.parent()?.to_owned()))
            .collect();
        let (state, on_demand) = (self.state.clone(), self.assignment.on_demand.clone());
        let is_on_demand = move |name: &Name| on_demand.subject(name).is_some();
        match blocking(move || put_in_place(&state, &of_sites, is_on_demand)).await {
            Ok(0) => {}
            Ok(moved) => tracing::info!(
                moved,
                "certificates of sites and those that clients ask for were put in their places"
            ),
            Err(error) => tracing::warn!(%error, "a certificate cannot be put in its place"),
        }
    }

    fn is_loaded(&self) -> bool {
        let mut names = self.desk.entries().map(|(_, entry)| &entry.subject.name);
        names
            .next()
            .is_none_or(|name| (self.desk.surroundings.coverage)(name).loaded)
    }

    /// Takes a certificate out of service. Where a site has it, only if `force` says so.
    pub(super) async fn delete(&mut self, name: &Name, force: bool) -> Result<Deleted, RenewError> {
        if self.lock.is_none() {
            return Err(self.desk.not_writer());
        }
        let id = self.desk.by_name(name);
        let Some((id, entry)) = id.and_then(|id| Some((id, self.desk.entry(id)?))) else {
            let (state, wanted) = (self.state.clone(), name.clone());
            let dirs = blocking(move || directories_of(&state, &wanted)).await;
            let archived = put_away(&self.state, dirs, name).await?;
            return Ok(Deleted {
                archived,
                used: false,
            });
        };
        let refused = |cause: &str| Err(RenewError::Refused(format!("{name} {cause}")));
        if entry.running {
            return refused("is being worked on just now; ask again in a moment");
        }
        if !force {
            return refused(
                "is the name of a site: without its certificate a new one is ordered; take it \
                 out of the configuration first, or say --force",
            );
        }
        let dir = entry.dir.clone();
        let archived = put_away(&self.state, entry.directories(), name).await?;
        if let Some(entry) = self.desk.entry_mut(id) {
            entry.set_stored(None);
            entry.last_error = None;
        }
        self.desk.check_at(id, OffsetDateTime::UNIX_EPOCH);
        (self.desk.surroundings.reload_hint)(dir);
        Ok(Deleted {
            archived,
            used: true,
        })
    }
}

async fn put_away(
    state: &StateDir,
    dirs: Vec<PathBuf>,
    name: &Name,
) -> Result<Vec<PathBuf>, RenewError> {
    let state = state.clone();
    let archived = blocking(move || {
        let there = dirs.iter().filter(|dir| dir.is_dir());
        let each = there.map(|dir| archive(&state, dir, clock::now()));
        each.collect::<Result<Vec<PathBuf>, StoreError>>()
    });
    let archived = archived.await;
    let archived = archived.map_err(|error| RenewError::Refused(error.to_string()))?;
    match archived.is_empty() {
        true => Err(RenewError::UnknownName(name.clone())),
        false => {
            tracing::warn!(%name, ?archived, "certificate taken out of service");
            Ok(archived)
        }
    }
}
