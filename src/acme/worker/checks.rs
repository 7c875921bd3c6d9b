//! Which revocation lists and responders are asked when: a pure schedule. Certificates that name
//! the same list share one look at it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use time::{Duration, OffsetDateTime};

use crate::acme::revocation::Source;

/// Looks at the same time: they are in nobody's way, and a hundred thousand responses take hours
/// in any case.
const MAX_RUNNING: usize = 4;
/// After a clock that was ahead, no look waits for longer than this; the file of each source knows
/// whether it is time.
const LONGEST_TRUST: Duration = Duration::HOUR;

#[derive(Debug, Default)]
pub(super) struct Checks {
    watched: BTreeMap<Source, Watched>,
    by_id: HashMap<u64, Vec<Source>>,
    timers: BTreeSet<(OffsetDateTime, Source)>,
    running: usize,
}

#[derive(Debug)]
struct Watched {
    ids: BTreeSet<u64>,
    next: OffsetDateTime,
    is_running: bool,
    error: Option<String>,
}

impl Checks {
    /// Has these sources looked at for `id`, and no others.
    pub(super) fn watch(&mut self, id: u64, sources: Vec<Source>) {
        if self.by_id.get(&id).map_or(&[][..], Vec::as_slice) == sources {
            return;
        }
        self.unwatch(id);
        for source in &sources {
            match self.watched.get_mut(source) {
                Some(watched) => {
                    watched.ids.insert(id);
                }
                None => {
                    let next = OffsetDateTime::UNIX_EPOCH;
                    let watched = Watched {
                        ids: BTreeSet::from([id]),
                        next,
                        is_running: false,
                        error: None,
                    };
                    self.watched.insert(source.clone(), watched);
                    self.timers.insert((next, source.clone()));
                }
            }
        }
        self.by_id.insert(id, sources);
    }

    /// Nobody looks at anything for `id` any more.
    pub(super) fn unwatch(&mut self, id: u64) {
        for source in self.by_id.remove(&id).unwrap_or_default() {
            let Some(watched) = self.watched.get_mut(&source) else {
                continue;
            };
            watched.ids.remove(&id);
            if watched.ids.is_empty() && !watched.is_running {
                self.timers.remove(&(watched.next, source.clone()));
                self.watched.remove(&source);
            }
        }
    }

    /// Forgets whom all looks are for.
    pub(super) fn clear(&mut self) {
        let ids: Vec<u64> = self.by_id.keys().copied().collect();
        ids.into_iter().for_each(|id| self.unwatch(id));
    }

    /// A source that is to be looked at now, and for whom. It runs until [`ended`](Self::ended).
    pub(super) fn take(&mut self, now: OffsetDateTime) -> Option<(Source, Vec<u64>)> {
        if self.running >= MAX_RUNNING {
            return None;
        }
        self.timers.first().filter(|(at, _)| *at <= now)?;
        let (_, source) = self.timers.pop_first()?;
        let watched = self.watched.get_mut(&source)?;
        watched.is_running = true;
        self.running += 1;
        let ids = watched.ids.iter().copied().collect();
        Some((source, ids))
    }

    /// A look has ended. Answers for whom that is news: an error that was not there before, or is
    /// there no more.
    pub(super) fn ended(
        &mut self,
        source: &Source,
        next: OffsetDateTime,
        error: Option<String>,
    ) -> Vec<u64> {
        self.running = self.running.saturating_sub(1);
        let Some(watched) = self.watched.get_mut(source) else {
            return Vec::new();
        };
        watched.is_running = false;
        if watched.ids.is_empty() {
            self.watched.remove(source);
            return Vec::new();
        }
        let is_news = watched.error != error;
        watched.next = next;
        watched.error = error;
        self.timers.insert((next, source.clone()));
        match is_news {
            true => watched.ids.iter().copied().collect(),
            false => Vec::new(),
        }
    }

    /// The clock was set back.
    pub(super) fn release(&mut self, now: OffsetDateTime) {
        let latest = now + LONGEST_TRUST;
        while self.timers.last().is_some_and(|(at, _)| *at > latest)
            && let Some((_, source)) = self.timers.pop_last()
        {
            if let Some(watched) = self.watched.get_mut(&source) {
                watched.next = latest;
                self.timers.insert((latest, source));
            }
        }
    }

    pub(super) fn wake_at(&self) -> Option<OffsetDateTime> {
        let next = self.timers.first().map(|(at, _)| *at);
        next.filter(|_| self.running < MAX_RUNNING)
    }

    /// Why it is not known whether the certificate is revoked: where every source of it fails.
    pub(super) fn error_of(&self, id: u64) -> Option<&str> {
        let sources = self.by_id.get(&id)?;
        let mut errors = sources.iter().map(|source| {
            let watched = self.watched.get(source);
            watched.and_then(|watched| watched.error.as_deref())
        });
        let first = errors.next()??;
        errors.all(|error| error.is_some()).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-26 12:00 UTC);

    fn crl(url: &str) -> Source {
        Source::Crl(url.into())
    }

    #[test]
    fn one_look_for_all_that_name_a_list() {
        let mut checks = Checks::default();
        for id in 0..3 {
            checks.watch(id, vec![crl("a")]);
        }
        assert_eq!(checks.take(NOW), Some((crl("a"), vec![0, 1, 2])));
        assert_eq!(checks.take(NOW), None, "it runs");
        let later = NOW + Duration::DAY;
        let concerned = checks.ended(&crl("a"), later, Some("no".to_owned()));
        assert_eq!(concerned, [0, 1, 2]);
        assert_eq!(checks.wake_at(), Some(later));
        assert_eq!(checks.error_of(1), Some("no"));
        // Another certificate does not make it sooner.
        checks.watch(9, vec![crl("a")]);
        assert_eq!(checks.take(NOW + Duration::HOUR), None);
        assert_eq!(checks.take(later).unwrap().1, [0, 1, 2, 9]);
        let concerned = checks.ended(&crl("a"), later, Some("no".to_owned()));
        assert!(concerned.is_empty(), "no news");
        for id in [0, 1, 2, 9] {
            checks.unwatch(id);
        }
        assert_eq!(checks.wake_at(), None);
    }

    #[test]
    fn a_certificate_with_two_sources_is_in_the_dark_only_without_both() {
        let mut checks = Checks::default();
        checks.watch(1, vec![crl("a"), crl("b")]);
        let sources = [checks.take(NOW).unwrap().0, checks.take(NOW).unwrap().0];
        checks.ended(&sources[0], NOW + Duration::DAY, Some("down".to_owned()));
        assert_eq!(checks.error_of(1), None);
        checks.ended(
            &sources[1],
            NOW + Duration::DAY,
            Some("down, too".to_owned()),
        );
        assert!(checks.error_of(1).is_some());
        // Its successor names another one.
        checks.watch(1, vec![crl("c")]);
        assert_eq!(checks.error_of(1), None);
        assert_eq!(checks.take(NOW), Some((crl("c"), vec![1])));
    }

    #[test]
    fn what_ends_when_nobody_wants_it_any_more_is_forgotten() {
        let mut checks = Checks::default();
        checks.watch(1, vec![crl("a")]);
        checks.take(NOW).unwrap();
        checks.clear();
        let concerned = checks.ended(&crl("a"), NOW, Some("no".to_owned()));
        assert!(concerned.is_empty());
        assert!(checks.watched.is_empty() && checks.timers.is_empty());
    }

    #[test]
    fn some_at_a_time_and_a_clock_that_was_ahead_is_forgotten() {
        let mut checks = Checks::default();
        for id in 0..10 {
            checks.watch(id, vec![crl(&id.to_string())]);
        }
        let taken: Vec<_> = std::iter::from_fn(|| checks.take(NOW)).collect();
        assert_eq!(taken.len(), MAX_RUNNING);
        assert_eq!(checks.wake_at(), None);
        for (source, _) in taken {
            checks.ended(&source, NOW + Duration::days(900), None);
        }
        checks.release(NOW);
        let soon = NOW + LONGEST_TRUST;
        let mut all = 0;
        while let Some((source, _)) = checks.take(soon) {
            checks.ended(&source, soon + Duration::DAY, None);
            all += 1;
        }
        assert_eq!(all, 10);
    }
}
