//! Which upstreams are in use now, and which of them a request gets: decided from their weights and
//! health alone, without I/O.

use std::time::Duration;

use super::health::{State, Tick};

/// Weights are multiplied by this where some upstream starts slowly: a tenth has to be a whole number.
const SLOW_STEPS: u32 = 10;

/// What is to be known of an upstream.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub weight: u32,
    pub state: State,
    pub back_at: Option<Tick>,
}

/// Those in use, until something changes.
#[derive(Debug, Default)]
pub struct View {
    /// Of which changes this knows.
    changes: u64,
    /// When time alone changes it.
    valid_until: Option<Tick>,
    shares: Box<[Share]>,
    /// All of them in turn, as often as their weights say, evenly spread.
    schedule: Box<[u16]>,
    /// What is used where nothing else is left, in this order.
    last_resort: Box<[u16]>,
    total: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    index: u16,
    weight: u32,
}

/// Weights and thresholds.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Per cent.
    pub panic_threshold: u8,
    pub slow_start: Duration,
}

impl View {
    pub fn new(candidates: &[Candidate], rules: Rules, now: Tick, changes: u64) -> View {
        let usable = usable(candidates, rules.panic_threshold, now);
        let slow = |candidate: &Candidate| slow_share(candidate, rules.slow_start, now);
        let starting = usable.iter().any(|&i| slow(&candidates[i]) < SLOW_STEPS);
        let weight = |candidate: &Candidate| match starting {
            true => (candidate.weight * slow(candidate)).max(1),
            false => candidate.weight,
        };
        let shares: Box<[Share]> = usable
            .iter()
            .map(|&i| Share {
                index: i as u16,
                weight: weight(&candidates[i]),
            })
            .collect();
        let mut rest: Vec<usize> = (0..candidates.len())
            .filter(|i| !usable.contains(i))
            .collect();
        rest.sort_by_key(|&i| candidates[i].state);
        View {
            changes,
            valid_until: valid_until(candidates, rules.slow_start, now),
            schedule: schedule(&shares),
            total: shares.iter().map(|share| share.weight).sum(),
            last_resort: rest.iter().map(|&i| i as u16).collect(),
            shares,
        }
    }

    /// Of no upstreams, and never valid.
    pub fn outdated() -> View {
        View {
            changes: u64::MAX,
            ..View::default()
        }
    }

    pub fn is_valid(&self, changes: u64, now: impl FnOnce() -> Tick) -> bool {
        self.changes == changes && self.valid_until.is_none_or(|until| now() < until)
    }

    pub fn has(&self, upstream: usize) -> bool {
        self.shares
            .iter()
            .any(|share| usize::from(share.index) == upstream)
    }

    /// Smooth weighted round robin.
    pub fn in_turn(&self, turn: usize, accepts: impl Fn(usize) -> bool) -> Option<usize> {
        let length = self.schedule.len();
        (0..length)
            .map(|step| usize::from(self.schedule[turn.wrapping_add(step) % length]))
            .find(|upstream| accepts(*upstream))
    }

    /// The one with the least load for its weight; of those with the same, whose turn it is.
    pub fn least_loaded(
        &self,
        turn: usize,
        load: impl Fn(usize) -> usize,
        accepts: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let length = self.shares.len();
        let mut best: Option<(Share, u64)> = None;
        for step in 0..length {
            let share = self.shares[turn.wrapping_add(step) % length];
            if !accepts(usize::from(share.index)) {
                continue;
            }
            // One more is what it would have.
            let load = load(usize::from(share.index)) as u64 + 1;
            let less = |(other, its): (Share, u64)| {
                load * u64::from(other.weight) < its * u64::from(share.weight)
            };
            if best.is_none_or(less) {
                best = Some((share, load));
            }
        }
        best.map(|(share, _)| usize::from(share.index))
    }

    /// The less loaded of two that `random` names, by weight.
    pub fn of_two(
        &self,
        random: u64,
        load: impl Fn(usize) -> usize,
        accepts: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = self.by_chance(random as u32)?;
        let second = self.by_chance((random >> 32) as u32)?;
        let load_of = |share: &Share| load(usize::from(share.index)) as u64 + 1;
        // Where both are the same, another one is the second.
        let second = match second.index == first.index && self.shares.len() > 1 {
            true => self.other_than(first, random),
            false => second,
        };
        let less =
            load_of(&second) * u64::from(first.weight) < load_of(&first) * u64::from(second.weight);
        let (one, other) = match less {
            true => (second, first),
            false => (first, second),
        };
        let mut both = [one, other].into_iter().map(|it| usize::from(it.index));
        both.find(|upstream| accepts(*upstream))
            .or_else(|| self.in_turn(random as usize, accepts))
    }

    fn by_chance(&self, random: u32) -> Option<Share> {
        let mut point = (u64::from(random) * u64::from(self.total)) >> 32;
        let mut shares = self.shares.iter();
        shares
            .find(|share| match point.checked_sub(u64::from(share.weight)) {
                Some(rest) => {
                    point = rest;
                    false
                }
                None => true,
            })
            .copied()
    }

    fn other_than(&self, first: Share, random: u64) -> Share {
        let others = self.shares.iter().filter(|it| it.index != first.index);
        let step = mix(random) as usize % (self.shares.len() - 1);
        others.copied().nth(step).unwrap_or(first)
    }

    /// The one with the highest score for a key (rendezvous hashing): a key moves only if its
    /// upstream goes, or one that suits it better comes.
    pub fn by_key(
        &self,
        key: u64,
        identity: impl Fn(usize) -> u64,
        accepts: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let shares = self.shares.iter();
        let accepted = shares.filter(|share| accepts(usize::from(share.index)));
        let score = |share: &Share| {
            let hash = mix(key ^ identity(usize::from(share.index)));
            // Evenly between 0 and 1, both excluded.
            let even = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            -f64::from(share.weight) / even.ln()
        };
        accepted
            .map(|share| (usize::from(share.index), score(share)))
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .map(|(upstream, _)| upstream)
    }

    pub fn last_resort(&self, accepts: impl Fn(usize) -> bool) -> Option<usize> {
        let mut rest = self.last_resort.iter().map(|&i| usize::from(i));
        rest.find(|upstream| accepts(*upstream))
    }
}

/// Those that are up; or, where too many are not, all that might be.
fn usable(candidates: &[Candidate], panic_threshold: u8, now: Tick) -> Vec<usize> {
    let all = 0..candidates.len();
    let up = |candidate: &Candidate| match candidate.state {
        State::Up => true,
        State::Ejected(until) | State::Unreachable(until) => until <= now,
        State::Failing => false,
    };
    let healthy: Vec<usize> = all.clone().filter(|&i| up(&candidates[i])).collect();
    let away = candidates.len() - healthy.len();
    if away * 100 <= usize::from(panic_threshold) * candidates.len() {
        return healthy;
    }
    // A dial that failed is no matter of opinion: to send more there helps nobody.
    let reachable =
        |candidate: &Candidate| up(candidate) || !matches!(candidate.state, State::Unreachable(_));
    all.filter(|&i| reachable(&candidates[i])).collect()
}

/// In steps: from one to all of them.
fn slow_share(candidate: &Candidate, slow_start: Duration, now: Tick) -> u32 {
    let Some(back_at) = candidate.back_at.filter(|_| !slow_start.is_zero()) else {
        return SLOW_STEPS;
    };
    let passed = now.since(back_at).as_millis() * u128::from(SLOW_STEPS);
    let steps = passed / slow_start.as_millis().max(1);
    u32::try_from(steps)
        .unwrap_or(u32::MAX)
        .clamp(1, SLOW_STEPS)
}

fn valid_until(candidates: &[Candidate], slow_start: Duration, now: Tick) -> Option<Tick> {
    let next = candidates.iter().filter_map(|candidate| {
        let trial = match candidate.state {
            State::Ejected(until) | State::Unreachable(until) => Some(until),
            State::Up | State::Failing => None,
        };
        let starting = slow_share(candidate, slow_start, now) < SLOW_STEPS;
        let step = starting.then(|| now.after((slow_start / SLOW_STEPS).max(MIN_STEP)));
        trial.into_iter().chain(step).min()
    });
    next.min()
}

/// A view that is made anew more often costs more than it is worth.
const MIN_STEP: Duration = Duration::from_millis(20);

/// Each as often as its weight says, as evenly as that goes (the way of nginx's `upstream`).
fn schedule(shares: &[Share]) -> Box<[u16]> {
    let divisor = shares
        .iter()
        .fold(0, |d, share| gcd(d, share.weight))
        .max(1);
    let weights: Vec<i64> = shares
        .iter()
        .map(|share| i64::from(share.weight / divisor))
        .collect();
    let total: i64 = weights.iter().sum();
    let mut current = vec![0; shares.len()];
    let mut order = Vec::with_capacity(total as usize);
    for _ in 0..total {
        for (current, weight) in current.iter_mut().zip(&weights) {
            *current += weight;
        }
        // The first of several.
        let best = (0..shares.len()).rev().max_by_key(|&i| current[i]);
        if let Some(best) = best {
            current[best] -= total;
            order.push(shares[best].index);
        }
    }
    order.into()
}

fn gcd(a: u32, b: u32) -> u32 {
    match b {
        0 => a,
        b => gcd(b, a % b),
    }
}

/// Bits that look like chance and follow from `x` alone (splitmix64).
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The same number for the same bytes, in every process (FNV-1a).
pub fn hash(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        panic_threshold: 50,
        slow_start: Duration::ZERO,
    };
    const NOW: Tick = Tick(100_000);

    fn up(weight: u32) -> Candidate {
        Candidate {
            weight,
            state: State::Up,
            back_at: None,
        }
    }

    fn with(state: State) -> Candidate {
        Candidate { state, ..up(1) }
    }

    fn view(candidates: &[Candidate]) -> View {
        View::new(candidates, RULES, NOW, 0)
    }

    fn turns(view: &View, count: usize) -> Vec<usize> {
        let turns = (0..count).map(|turn| view.in_turn(turn, |_| true).unwrap());
        turns.collect()
    }

    #[test]
    fn weights_are_spread_evenly() {
        assert_eq!(turns(&view(&[up(1), up(1), up(1)]), 4), [0, 1, 2, 0]);
        let order = turns(&view(&[up(5), up(1), up(1)]), 7);
        assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(turns(&view(&[up(10), up(20)]), 3), [1, 0, 1]);
    }

    #[test]
    fn what_is_away_is_left_out_until_too_many_are() {
        let (ejected, dead) = (State::Ejected(Tick::NEVER), State::Unreachable(Tick::NEVER));
        for (states, usable, rest) in [
            (
                [State::Up, State::Up, ejected, dead],
                vec![0, 1],
                vec![2, 3],
            ),
            (
                [State::Up, ejected, State::Failing, dead],
                vec![0, 1, 2],
                vec![3],
            ),
            ([dead, dead, dead, State::Up], vec![3], vec![0, 1, 2]),
            ([dead, dead, dead, dead], vec![], vec![0, 1, 2, 3]),
            (
                [ejected, ejected, ejected, ejected],
                vec![0, 1, 2, 3],
                vec![],
            ),
        ] {
            let view = view(&states.map(with));
            let found: Vec<u16> = view.shares.iter().map(|share| share.index).collect();
            assert_eq!(
                (found, view.last_resort.to_vec()),
                (usable, rest),
                "{states:?}"
            );
        }
    }

    #[test]
    fn time_brings_them_back() {
        let until = Tick(NOW.0 + 5);
        let candidates = [with(State::Up), with(State::Ejected(until))];
        let view = view(&candidates);
        assert!(!view.has(1) && view.valid_until == Some(until));
        assert!(view.is_valid(0, || NOW) && !view.is_valid(0, || until));
        assert!(!view.is_valid(1, || NOW));
        assert!(View::new(&candidates, RULES, until, 0).has(1));
    }

    #[test]
    fn who_comes_back_starts_slowly() {
        let rules = Rules {
            slow_start: Duration::from_secs(10),
            ..RULES
        };
        let back = Candidate {
            back_at: Some(NOW),
            ..up(1)
        };
        for (seconds, expected) in [(0, 1), (1, 1), (5, 5), (9, 9), (10, 10), (60, 10)] {
            let now = NOW.after(Duration::from_secs(seconds));
            let view = View::new(&[up(1), back], rules, now, 0);
            let order = turns(&view, 20);
            let second = order.iter().filter(|it| **it == 1).count();
            let ratio = second as f64 / (order.len() - second) as f64;
            assert!(
                (ratio - f64::from(expected) / 10.0).abs() < 0.2,
                "{seconds}: {order:?}"
            );
            assert_eq!(view.valid_until.is_some(), expected < 10);
        }
    }

    #[test]
    fn the_least_loaded_for_its_weight() {
        let view = view(&[up(1), up(3), up(1)]);
        let least = |load: [usize; 3]| view.least_loaded(0, |i| load[i], |_| true);
        assert_eq!(least([0, 0, 0]), Some(1));
        assert_eq!(least([0, 2, 1]), Some(0));
        assert_eq!(least([1, 2, 0]), Some(1));
        assert_eq!(least([9, 30, 9]), Some(0));
        assert_eq!(view.least_loaded(0, |_| 0, |i| i != 1), Some(0));
        assert_eq!(view.least_loaded(2, |_| 0, |i| i != 1), Some(2));
    }

    #[test]
    fn of_two_the_less_loaded() {
        let view = view(&[up(1), up(1), up(1)]);
        let mut found = [0; 3];
        for number in 0..3000u64 {
            let load = [0, 0, 9];
            found[view.of_two(mix(number), |i| load[i], |_| true).unwrap()] += 1;
        }
        // The third would be chosen only beside itself.
        assert!(
            found[2] == 0 && found[0] > 1000 && found[1] > 1000,
            "{found:?}"
        );
        assert_eq!(view.of_two(1, |_| 0, |i| i == 1), Some(1));
    }

    #[test]
    fn keys_stay_where_they_are() {
        let all = [up(1), up(1), up(2), up(1)];
        let identity = |i: usize| hash(format!("upstream-{i}").as_bytes());
        let before = view(&all);
        let mut without = all;
        without[1].state = State::Unreachable(Tick::NEVER);
        let after = view(&without);
        let (mut counts, mut moved) = ([0; 4], 0);
        for key in 0..10_000u64 {
            let key = hash(&key.to_le_bytes());
            let old = before.by_key(key, identity, |_| true).unwrap();
            let new = after.by_key(key, identity, |_| true).unwrap();
            counts[old] += 1;
            moved += usize::from(old != 1 && new != old);
            assert!(new != 1);
        }
        assert_eq!(moved, 0);
        for (count, expected) in counts.iter().zip([2000, 2000, 4000, 2000]) {
            assert!(
                (expected - 200..expected + 200).contains(count),
                "{counts:?}"
            );
        }
    }
}
