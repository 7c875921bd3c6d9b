//! What was seen on our own listener, against what the live table says: pure bookkeeping. Who
//! looks, and when, is not decided here; see `listener::self_check`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use time::OffsetDateTime;

use super::certified_key::Fingerprint;
use super::name::Name;
use super::table::Table;

/// As many names of one batch of swaps are looked at: a bulk load is proved by a sample.
pub const SAMPLE: usize = 16;

/// The label under a wildcard that is asked for in its stead. No site has it.
const WILDCARD_LABEL: &str = "perennial-self-check";

/// What the last look at each name found.
#[derive(Debug, Default)]
pub struct Proof {
    checks: BTreeMap<Name, Check>,
}

/// One look at our own listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The served leaf; `None` where the handshake showed none.
    pub served: Option<Fingerprint>,
    pub seen_at: OffsetDateTime,
    /// In words, if what was served is not what the table chooses.
    pub difference: Option<String>,
}

/// What a look changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Nothing,
    /// A difference that was not known before.
    Differs(String),
    /// The last difference is gone.
    Agrees,
}

impl Proof {
    /// Notes what a handshake for `name` showed, or why it showed nothing. `expected` is what the
    /// table may serve: its choice and the alternate for other clients.
    pub fn record(
        &mut self,
        name: &Name,
        served: Result<Fingerprint, String>,
        expected: &[Fingerprint],
        now: OffsetDateTime,
    ) -> News {
        let difference = difference(&served, expected);
        let check = Check {
            served: served.ok(),
            seen_at: now,
            difference: difference.clone(),
        };
        let before = self.checks.insert(name.clone(), check);
        match (before.and_then(|check| check.difference), difference) {
            (None, None) => News::Nothing,
            (Some(_), None) => News::Agrees,
            (Some(before), Some(now)) if before == now => News::Nothing,
            (_, Some(now)) => News::Differs(now),
        }
    }

    /// The name has no certificate any more.
    pub fn forget(&mut self, name: &Name) {
        self.checks.remove(name);
    }

    pub fn get(&self, name: &Name) -> Option<&Check> {
        self.checks.get(name)
    }

    /// Every name that was looked at.
    pub fn checks(&self) -> impl Iterator<Item = (&Name, &Check)> {
        self.checks.iter()
    }

    /// The look that says most about a certificate with these names: one that found a difference,
    /// else the latest.
    pub fn of_any<'n>(&self, names: &'n [Name]) -> Option<(&'n Name, &Check)> {
        names
            .iter()
            .filter_map(|name| Some((name, self.get(name)?)))
            .max_by_key(|(_, check)| (check.difference.is_some(), check.seen_at))
    }
}

/// `None` if what is served is one of what is `expected`.
pub fn difference(
    served: &Result<Fingerprint, String>,
    expected: &[Fingerprint],
) -> Option<String> {
    match served {
        Ok(served) if expected.contains(served) => None,
        Ok(served) => {
            let expected = expected.first().map(Fingerprint::to_string);
            let expected = expected.unwrap_or_else(|| "nothing".to_owned());
            Some(format!("clients get {served}, loaded is {expected}"))
        }
        Err(cause) => Some(format!("our own handshake failed: {cause}")),
    }
}

/// The fingerprints of what the table serves for a server name.
pub fn expected(table: &Table, host: &Name) -> Vec<Fingerprint> {
    let choice = table.get(host);
    choice
        .into_iter()
        .flat_map(|choice| [Some(&choice.best), choice.alternate.as_ref()])
        .flatten()
        .map(|live| live.key.fingerprint())
        .collect()
}

/// The host to ask for, to see what a name of a certificate gets.
pub fn host_of(name: &Name) -> Name {
    match name {
        Name::Wildcard(parent) => Name::Dns(format!("{WILDCARD_LABEL}.{parent}").into()),
        other => other.clone(),
    }
}

/// [`SAMPLE`] of the names at most, from all over the batch.
pub fn sample(names: &[Name]) -> Vec<Name> {
    let count = names.len().min(SAMPLE);
    (0..count)
        .filter_map(|at| names.get(at * names.len() / count))
        .cloned()
        .collect()
}

/// A [`Proof`] that the self-check writes and the admin API reads.
#[derive(Clone, Debug, Default)]
pub struct SharedProof(Arc<Mutex<Proof>>);

impl SharedProof {
    pub fn lock(&self) -> MutexGuard<'_, Proof> {
        // Checks are replaced whole, so a panic cannot have left half of one.
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::Duration;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2027-01-01 12:00 UTC);
    const OLD: Fingerprint = Fingerprint([1; 32]);
    const NEW: Fingerprint = Fingerprint([2; 32]);

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_difference_is_news_once_and_so_is_its_end() {
        let mut proof = Proof::default();
        let a = name("a.test");
        assert_eq!(proof.record(&a, Ok(OLD), &[OLD], NOW), News::Nothing);
        let News::Differs(text) = proof.record(&a, Ok(OLD), &[NEW], NOW) else {
            panic!("it differs");
        };
        assert!(text.contains(&OLD.to_string()) && text.contains(&NEW.to_string()));
        assert_eq!(proof.record(&a, Ok(OLD), &[NEW], NOW), News::Nothing);
        let failed = Err("refused".to_owned());
        let news = proof.record(&a, failed, &[NEW], NOW);
        assert!(matches!(news, News::Differs(text) if text.contains("refused")));
        assert_eq!(proof.get(&a).unwrap().served, None);
        assert_eq!(proof.record(&a, Ok(NEW), &[NEW], NOW), News::Agrees);
        assert_eq!(proof.record(&a, Ok(NEW), &[NEW], NOW), News::Nothing);
        proof.forget(&a);
        assert_eq!(proof.checks().count(), 0);
    }

    #[test]
    fn the_alternate_is_no_difference() {
        let mut proof = Proof::default();
        let news = proof.record(&name("a.test"), Ok(NEW), &[OLD, NEW], NOW);
        assert_eq!(news, News::Nothing);
    }

    #[test]
    fn of_several_names_the_one_that_differs_tells_most() {
        let mut proof = Proof::default();
        let names = [name("a.test"), name("b.test"), name("c.test")];
        let later = NOW + Duration::MINUTE;
        proof.record(&names[0], Ok(OLD), &[NEW], NOW);
        proof.record(&names[1], Ok(NEW), &[NEW], later);
        assert_eq!(proof.of_any(&names).unwrap().0, &names[0]);
        proof.record(&names[0], Ok(NEW), &[NEW], NOW);
        assert_eq!(proof.of_any(&names).unwrap().0, &names[1]);
        assert_eq!(proof.of_any(&names[2..]), None);
    }

    #[test]
    fn a_wildcard_is_asked_for_by_a_name_below_it() {
        let host = host_of(&name("*.a.test"));
        assert!(name("*.a.test").covers(&host), "{host}");
        assert_eq!(host_of(&name("a.test")), name("a.test"));
    }

    #[test]
    fn a_bulk_load_is_sampled_from_all_over_it() {
        let names: Vec<Name> = (0..1_000).map(|n| name(&format!("n{n}.test"))).collect();
        let chosen = sample(&names);
        assert_eq!(chosen.len(), SAMPLE);
        assert!(chosen.last().unwrap() > chosen.first().unwrap());
        assert_eq!(chosen[1], names[62]);
        assert_eq!(sample(&names[..3]), names[..3]);
        assert!(sample(&[]).is_empty());
    }
}
