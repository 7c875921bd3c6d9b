//! What is going on at the moment, as one state behind one lock that is never held across an
//! await: who fetches which name, who waits, what cannot be had. Decides, and does nothing.

use std::collections::HashMap;
use std::net::IpAddr;

use time::OffsetDateTime;
use tokio::sync::watch;

use super::budget::{Network, Purse, Spent, Standing};
use super::refused::{MAX_REFUSED, Refusal, RefusedNames};
use crate::certificate::name::Name;
use crate::config::Budgets;

/// Handshakes that wait at the same time: each holds a connection.
const MAX_WAITING: usize = 2_000;
/// Of them, those of one network, so that nobody takes all places.
const MAX_WAITING_PER_CLIENT: usize = 100;
/// Names that are fetched at the same time, from disk or from a CA.
const MAX_FETCHES: usize = 1_000;

/// How a fetch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It can be served.
    Served,
    Refused,
}

/// How a handshake's wish ends, if that can be said at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// The name was refused a short while ago.
    Known,
    /// Too many wait already.
    Busy,
}

/// A handshake that waits.
pub struct Waiting {
    /// `None` inside until the fetch has ended.
    pub fetched: watch::Receiver<Option<Fetched>>,
    /// Whether this one has to start the fetch.
    pub lead: Option<watch::Sender<Option<Fetched>>>,
}

/// See the module.
pub struct Gate {
    fetches: HashMap<Name, watch::Receiver<Option<Fetched>>>,
    waiting: usize,
    waiting_by_network: HashMap<Network, usize>,
    refused: RefusedNames,
    purse: Purse,
    /// When a spent budget was last spoken of.
    told_at: Option<OffsetDateTime>,
}

/// A snapshot for people.
pub struct GateReport {
    pub waiting: usize,
    pub fetching: usize,
    pub refused: usize,
    /// The latest refusals.
    pub refusals: Vec<(Name, Refusal)>,
    pub budgets: [Standing; 3],
}

/// Refusals that a report lists.
const REPORTED_REFUSALS: usize = 20;

/// How often a spent budget is spoken of.
const TELL_INTERVAL: time::Duration = time::Duration::minutes(10);

impl Gate {
    pub fn new(budgets: Budgets) -> Gate {
        Gate {
            fetches: HashMap::new(),
            waiting: 0,
            waiting_by_network: HashMap::new(),
            refused: RefusedNames::new(MAX_REFUSED),
            purse: Purse::new(budgets),
            told_at: None,
        }
    }

    /// Goes on with other settings: what was refused under the old ones may be had now.
    pub fn reconfigure(&mut self, budgets: Budgets) {
        self.refused.clear();
        self.purse.set_limits(budgets);
    }

    /// A handshake begins to wait for a name. [`Gate::leave`] ends it.
    pub fn join(
        &mut self,
        name: &Name,
        client: IpAddr,
        now: OffsetDateTime,
    ) -> Result<Waiting, TurnedAway> {
        if self.refused.get(name, now).is_some() {
            return Err(TurnedAway::Known);
        }
        let network = Network::of(client);
        let of_network = self.waiting_by_network.get(&network).copied().unwrap_or(0);
        let fetch = self.fetches.get(name).cloned();
        let busy = self.waiting >= MAX_WAITING
            || of_network >= MAX_WAITING_PER_CLIENT
            || (fetch.is_none() && self.fetches.len() >= MAX_FETCHES);
        if busy {
            return Err(TurnedAway::Busy);
        }
        self.waiting += 1;
        self.waiting_by_network.insert(network, of_network + 1);
        if let Some(fetched) = fetch {
            let lead = None;
            return Ok(Waiting { fetched, lead });
        }
        let (lead, fetched) = watch::channel(None);
        self.fetches.insert(name.clone(), fetched.clone());
        let lead = Some(lead);
        Ok(Waiting { fetched, lead })
    }

    /// A handshake waits no longer.
    pub fn leave(&mut self, client: IpAddr) {
        self.waiting = self.waiting.saturating_sub(1);
        let network = Network::of(client);
        if let Some(count) = self.waiting_by_network.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.waiting_by_network.remove(&network);
            }
        }
    }

    /// A fetch has ended.
    pub fn fetch_ended(&mut self, name: &Name) {
        self.fetches.remove(name);
    }

    /// Spends what a new name costs. The second: whether that should be spoken of.
    pub fn spend(
        &mut self,
        name: &Name,
        client: IpAddr,
        now: OffsetDateTime,
    ) -> Result<(), (Spent, bool)> {
        let spent = self.purse.spend(&name.to_string(), client, now);
        spent.map_err(|spent| {
            let recently = |at: OffsetDateTime| (now - at).abs() < TELL_INTERVAL;
            let tell = !self.told_at.is_some_and(recently);
            if tell {
                self.told_at = Some(now);
            }
            (spent, tell)
        })
    }

    /// Nobody is asked about the name until then.
    pub fn refuse(&mut self, name: Name, refusal: Refusal, now: OffsetDateTime) {
        self.refused.insert(name, refusal, now);
    }

    /// Whether anything is being had.
    pub fn is_fetching(&self) -> bool {
        !self.fetches.is_empty()
    }

    pub fn report(&self) -> GateReport {
        let refusals = self.refused.iter().take(REPORTED_REFUSALS);
        GateReport {
            waiting: self.waiting,
            fetching: self.fetches.len(),
            refused: self.refused.len(),
            refusals: refusals
                .map(|(name, refusal)| (name.clone(), refusal.clone()))
                .collect(),
            budgets: self.purse.standings(),
        }
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-25 12:00 UTC);

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn client(number: u32) -> IpAddr {
        IpAddr::V4((number << 8).into())
    }

    #[test]
    fn the_first_leads_and_the_others_wait_for_the_same() {
        let mut gate = Gate::new(Budgets::default());
        let first = gate.join(&name("a.test"), client(1), NOW).ok().unwrap();
        let second = gate.join(&name("a.test"), client(2), NOW).ok().unwrap();
        let other = gate.join(&name("b.test"), client(1), NOW).ok().unwrap();
        assert!(first.lead.is_some() && second.lead.is_none() && other.lead.is_some());
        assert_eq!((gate.report().waiting, gate.report().fetching), (3, 2));
        first.lead.unwrap().send_replace(Some(Fetched::Served));
        assert_eq!(*second.fetched.borrow(), Some(Fetched::Served));
        gate.fetch_ended(&name("a.test"));
        for number in [1, 2, 1] {
            gate.leave(client(number));
        }
        assert_eq!((gate.report().waiting, gate.report().fetching), (0, 1));
        assert!(gate.waiting_by_network.is_empty());
    }

    #[test]
    fn one_network_cannot_take_all_places() {
        let mut gate = Gate::new(Budgets::default());
        let join = |gate: &mut Gate, number| gate.join(&name("a.test"), client(number), NOW).err();
        for _ in 0..MAX_WAITING_PER_CLIENT {
            assert_eq!(join(&mut gate, 1), None);
        }
        assert_eq!(join(&mut gate, 1), Some(TurnedAway::Busy));
        assert_eq!(join(&mut gate, 2), None);
        gate.leave(client(1));
        assert_eq!(join(&mut gate, 1), None);
    }

    #[test]
    fn names_and_handshakes_under_way_are_bounded() {
        let mut gate = Gate::new(Budgets::default());
        for number in 0..MAX_FETCHES {
            let name = name(&format!("n{number}.test"));
            let network = u32::try_from(number).unwrap();
            assert!(gate.join(&name, client(network), NOW).is_ok());
        }
        let more = gate.join(&name("more.test"), client(9_999), NOW);
        assert_eq!(more.err(), Some(TurnedAway::Busy));
        let known = gate.join(&name("n1.test"), client(9_999), NOW);
        assert!(known.is_ok_and(|waiting| waiting.lead.is_none()));
        for number in MAX_FETCHES + 1..MAX_WAITING {
            let network = u32::try_from(number).unwrap();
            assert!(gate.join(&name("n1.test"), client(network), NOW).is_ok());
        }
        let more = gate.join(&name("n1.test"), client(9_998), NOW);
        assert_eq!(more.err(), Some(TurnedAway::Busy));
    }

    #[test]
    fn what_was_refused_is_refused_at_once_until_the_configuration_changes() {
        let mut gate = Gate::new(Budgets::default());
        let refusal = Refusal {
            until: NOW + Duration::MINUTE,
            cause: "no".into(),
        };
        gate.refuse(name("a.test"), refusal, NOW);
        let join = |gate: &mut Gate, now| gate.join(&name("a.test"), client(1), now).err();
        assert_eq!(join(&mut gate, NOW), Some(TurnedAway::Known));
        assert_eq!(gate.report().refusals.len(), 1);
        assert_eq!(join(&mut gate, NOW + Duration::MINUTE), None);
        let refusal = Refusal {
            until: NOW + Duration::HOUR,
            cause: "no".into(),
        };
        gate.refuse(name("a.test"), refusal, NOW);
        gate.reconfigure(Budgets::default());
        assert_eq!(join(&mut gate, NOW), None);
    }

    #[test]
    fn a_spent_budget_is_spoken_of_now_and_then() {
        let limits = Budgets {
            total: Some(crate::config::Limit {
                count: 1,
                per: std::time::Duration::from_secs(3600),
            }),
            ..Budgets::default()
        };
        let mut gate = Gate::new(limits);
        let mut spend = |minutes| {
            let now = NOW + Duration::minutes(minutes);
            gate.spend(&name("a.test"), client(1), now)
        };
        assert_eq!(spend(0), Ok(()));
        assert_eq!(spend(0), Err((Spent::Total, true)));
        assert_eq!(spend(9), Err((Spent::Total, false)));
        assert_eq!(spend(10), Err((Spent::Total, true)));
    }
}
