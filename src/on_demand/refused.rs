//! The names that cannot be had for a while, and why: so that nobody is asked again for each
//! handshake. Pure: time is an argument.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use time::OffsetDateTime;

use crate::certificate::name::Name;

/// Names that are remembered; of more, those that would be forgotten first are forgotten.
pub const MAX_REFUSED: usize = 10_000;

/// See the module.
#[derive(Debug)]
pub struct RefusedNames {
    names: HashMap<Name, Refusal>,
    /// By when they are forgotten.
    order: BTreeSet<(OffsetDateTime, Name)>,
    max: usize,
}

/// Why a name cannot be had, and until when nobody is asked again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub until: OffsetDateTime,
    pub cause: Arc<str>,
}

impl RefusedNames {
    pub fn new(max: usize) -> RefusedNames {
        RefusedNames {
            names: HashMap::new(),
            order: BTreeSet::new(),
            max,
        }
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// The latest refusals, and their names.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Refusal)> {
        self.order
            .iter()
            .rev()
            .filter_map(|(_, name)| self.names.get_key_value(name))
    }

    pub fn insert(&mut self, name: Name, refusal: Refusal, now: OffsetDateTime) {
        self.remove(&name);
        self.forget(now);
        while self.names.len() >= self.max
            && let Some((_, first)) = self.order.pop_first()
        {
            self.names.remove(&first);
        }
        self.order.insert((refusal.until, name.clone()));
        self.names.insert(name, refusal);
    }

    /// Why the name cannot be had now, if so.
    pub fn get(&mut self, name: &Name, now: OffsetDateTime) -> Option<&Refusal> {
        self.forget(now);
        self.names.get(name)
    }

    /// Everything may be asked for again.
    pub fn clear(&mut self) {
        self.names.clear();
        self.order.clear();
    }

    fn remove(&mut self, name: &Name) {
        if let Some(refusal) = self.names.remove(name) {
            self.order.remove(&(refusal.until, name.clone()));
        }
    }

    fn forget(&mut self, now: OffsetDateTime) {
        while let Some((until, _)) = self.order.first()
            && *until <= now
            && let Some((_, name)) = self.order.pop_first()
        {
            self.names.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-25 12:00 UTC);

    fn name(number: i64) -> Name {
        format!("n{number}.test").parse().unwrap()
    }

    fn refusal(seconds: i64) -> Refusal {
        Refusal {
            until: NOW + Duration::seconds(seconds),
            cause: format!("for {seconds} s").into(),
        }
    }

    #[test]
    fn a_name_is_refused_until_its_time_is_over() {
        let mut refused = RefusedNames::new(10);
        refused.insert(name(1), refusal(10), NOW);
        refused.insert(name(2), refusal(20), NOW);
        // A later word on a name is the one that counts.
        refused.insert(name(1), refusal(30), NOW);
        let at = |seconds| NOW + Duration::seconds(seconds);
        assert_eq!(refused.get(&name(1), at(29)), Some(&refusal(30)));
        assert_eq!(refused.get(&name(2), at(29)), None);
        assert_eq!(refused.get(&name(1), at(30)), None);
        assert_eq!((refused.len(), refused.order.len()), (0, 0));
    }

    #[test]
    fn memory_is_bounded_and_the_shortest_refusals_go_first() {
        let mut refused = RefusedNames::new(3);
        for (number, seconds) in [(1, 40), (2, 10), (3, 30), (4, 20), (5, 50)] {
            refused.insert(name(number), refusal(seconds), NOW);
        }
        let kept: Vec<&Name> = refused.iter().map(|(name, _)| name).collect();
        assert_eq!(kept, [&name(5), &name(1), &name(3)]);
        assert_eq!(refused.order.len(), 3);
        refused.clear();
        assert_eq!(refused.get(&name(5), NOW), None);
    }
}
