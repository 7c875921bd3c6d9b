//! Tables of requests with the verdict that each deserves: asked one after the other of one
//! program in front of a [`Recorder`], and judged together.

use std::fmt::Debug;

use super::in_front_of;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::recorder::{Recorder, Seen};
use crate::support::wire::Message;

/// One row.
pub trait Row {
    type Verdict: Debug;
    type Observed: Debug;

    fn name(&self) -> &str;
    fn right(&self) -> &Self::Verdict;
    fn is_met(verdict: &Self::Verdict, observed: &Self::Observed) -> bool;
    async fn observe(&self, perennial: &Perennial, recorder: &Recorder) -> Self::Observed;

    /// What is wrong, if anything is.
    fn complaint(&self, observed: &Self::Observed) -> Option<String> {
        let (name, right) = (self.name(), self.right());
        let is_right = Self::is_met(right, observed);
        (!is_right).then(|| format!("{name}: {observed:?} instead of {right:?}"))
    }
}

/// All of them, and a message that names every one that differs.
pub async fn judge<R: Row>(rows: Vec<R>) {
    let place = Place::new();
    let recorder = Recorder::start(&place).await;
    let perennial = in_front_of(place, &[&recorder.addr.to_string()]).await;
    let mut wrong = Vec::new();
    for row in rows {
        let observed = row.observe(&perennial, &recorder).await;
        wrong.extend(row.complaint(&observed));
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// What reached the upstream since the last call.
#[derive(Default)]
pub struct Arrived {
    /// As `METHOD TARGET BODY`.
    pub seen: Vec<String>,
    pub malformed: Vec<String>,
}

/// `look` is shown each whole request.
pub fn arrived(recorder: &Recorder, look: impl Fn(&Message)) -> Arrived {
    let mut arrived = Arrived::default();
    for seen in recorder.take() {
        match seen {
            Seen::Request(request) => {
                look(&request);
                let (method, target) = request.asked();
                let text = format!("{method} {target} {}", request.text());
                arrived.seen.push(text.trim_end().to_owned());
            }
            Seen::Malformed(why) => arrived.malformed.push(why),
            Seen::Aborted(_) => {}
        }
    }
    arrived
}
