//! What can be known before a CA is asked for a certificate: whether it would find this host, and
//! whether it may issue. A look from inside may be wrong about what is seen from outside, so that
//! nothing here stops an order for good; it says cause and remedy before the CA says no.

pub mod authority;
mod caa;
mod disk;
mod reach;
mod resolve;

use std::path::PathBuf;
use std::time::Duration as StdDuration;

use serde::{Deserialize, Serialize};
use time::Duration;

use super::challenges::Challenges;
use super::dns::Lookup;
use super::error::{AcmeError, Class};
use crate::certificate::name::Name;
use crate::config::{self, ChallengeType};
use caa::Policy;
pub use caa::Property;

/// All checks together: an order waits no longer for them.
pub const LIMIT: StdDuration = StdDuration::from_secs(5);
/// Validation, nonces and certificates allow for less than that.
const CLOCK_GOOD: Duration = Duration::minutes(1);
const CLOCK_USABLE: Duration = Duration::HOUR;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Perhaps it is as it should be.
    Warning,
    Fails,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topic {
    /// Of the CA.
    Directory,
    /// Ours at the CA.
    Account,
    Profile,
    Address,
    Reachable,
    Caa,
    Clock,
    StateDirectory,
    Limits,
    StandingRecord,
    /// Of the challenge name to an acme-dns server.
    Delegation,
    /// What came of the last order, and when the next one is.
    Order,
}

impl Topic {
    pub fn as_str(self) -> &'static str {
        match self {
            Topic::Directory => "directory",
            Topic::Account => "account",
            Topic::Profile => "profile",
            Topic::Address => "address",
            Topic::Reachable => "reachable",
            Topic::Caa => "caa",
            Topic::Clock => "clock",
            Topic::StateDirectory => "state-directory",
            Topic::Limits => "limits",
            Topic::StandingRecord => "standing-record",
            Topic::Delegation => "delegation",
            Topic::Order => "order",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub topic: Topic,
    pub verdict: Verdict,
    /// What was seen.
    pub cause: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Whether an order would fail for certain.
    #[serde(default, skip)]
    pub hopeless: bool,
}

impl Check {
    pub fn ok(topic: Topic, cause: impl Into<String>) -> Check {
        Check {
            topic,
            verdict: Verdict::Ok,
            cause: cause.into(),
            remedy: None,
            hopeless: false,
        }
    }

    pub fn warning(topic: Topic, cause: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check {
            verdict: Verdict::Warning,
            remedy: Some(remedy.into()),
            ..Check::ok(topic, cause)
        }
    }

    pub fn fails(topic: Topic, cause: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check {
            verdict: Verdict::Fails,
            ..Check::warning(topic, cause, remedy)
        }
    }

    /// As seen from a CA that is not public: it may look with other eyes than ours, and may know
    /// names that we do not.
    pub fn as_advice(self) -> Check {
        let of_the_way = matches!(self.topic, Topic::Address | Topic::Reachable);
        match (of_the_way, self.verdict) {
            (true, Verdict::Fails) => Check {
                verdict: Verdict::Warning,
                cause: format!(
                    "{} (the CA is not public, and may see it otherwise)",
                    self.cause
                ),
                ..self
            },
            _ => self,
        }
    }

    fn hopeless(self) -> Check {
        Check {
            hopeless: true,
            ..self
        }
    }
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.cause)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// All that the checks are about.
#[derive(Clone)]
pub struct Preflight {
    pub name: Name,
    pub dns: config::Dns,
    /// What the CA and its account are called in CAA records.
    pub identities: Vec<String>,
    pub account: Option<String>,
    /// What the configuration permits.
    pub challenges: Vec<ChallengeType>,
    /// By how much the CA's clock is ahead of ours, where it has told.
    pub clock_offset: Option<Duration>,
    pub state_dir: PathBuf,
    /// The answers of the process that serves; `None`: this is another one.
    pub answers: Option<Challenges>,
}

impl Preflight {
    /// Looks at everything, all at once, for [`LIMIT`] at most.
    pub async fn run(self) -> Vec<Check> {
        let (mut checks, caa, disk) = tokio::join!(
            within(Topic::Address, self.network()),
            self.caa_alone(),
            self.disk(),
        );
        checks.extend(caa);
        checks.push(clock(self.clock_offset));
        checks.extend(disk);
        checks
    }

    /// Whether the CA may issue for the name; `None` where CAA does not apply.
    pub async fn caa_alone(&self) -> Option<Check> {
        if matches!(self.name, Name::Ip(_)) {
            return None;
        }
        within(Topic::Caa, async { vec![self.caa().await] })
            .await
            .pop()
    }

    /// What only the process that serves can see: the way to it, and its disk.
    pub async fn here(self) -> Vec<Check> {
        let network = within(Topic::Address, self.network());
        let (mut checks, disk) = tokio::join!(network, self.disk());
        checks.extend(disk);
        checks
    }

    async fn disk(&self) -> Vec<Check> {
        let state_dir = self.state_dir.clone();
        let check = async { vec![disk::check(state_dir).await] };
        within(Topic::StateDirectory, check).await
    }

    fn lookup(&self) -> Lookup {
        Lookup::new(self.dns.resolvers.clone(), Vec::new())
    }

    /// Where the name leads, and whether this process is there.
    async fn network(&self) -> Vec<Check> {
        let reachable = |kind: &ChallengeType| kind.proves_addresses();
        if self.name.is_wildcard() || !self.challenges.iter().any(reachable) {
            // Shown in DNS, from wherever.
            return Vec::new();
        }
        let addresses = match resolve::addresses(&self.lookup(), &self.name).await {
            Ok(addresses) => addresses,
            Err(check) => return vec![check],
        };
        let Some(answers) = &self.answers else {
            return vec![
                resolve::judge(&self.name, &addresses, None),
                reach::not_asked(),
            ];
        };
        let reached = reach::check(answers, &self.name, &addresses, &self.challenges).await;
        let address = resolve::judge(&self.name, &addresses, Some(reached.verdict));
        vec![address, reached]
    }

    async fn caa(&self) -> Check {
        let policy = Policy {
            identities: &self.identities,
            account: self.account.as_deref(),
            challenges: &self.challenges,
            wildcard: self.name.is_wildcard(),
        };
        caa::check(&self.lookup(), &self.name, &policy).await
    }
}

async fn within(topic: Topic, checks: impl Future<Output = Vec<Check>>) -> Vec<Check> {
    let limited = tokio::time::timeout(LIMIT, checks).await;
    limited.unwrap_or_else(|_| {
        let cause = format!("there was no answer within {LIMIT:?}");
        let remedy = "look at this host's DNS resolvers and its way out";
        vec![Check::warning(topic, cause, remedy)]
    })
}

/// Judges the difference to the CA's clock.
pub fn clock(offset: Option<Duration>) -> Check {
    let remedy = "set this host's clock, and let an NTP client keep it";
    let Some(offset) = offset else {
        return Check::warning(
            Topic::Clock,
            "the CA has not told its time yet",
            "ask again once the CA has been asked for something",
        );
    };
    let direction = if offset.is_negative() {
        "ahead of"
    } else {
        "behind"
    };
    let seconds = offset.unsigned_abs().as_secs();
    let cause = format!("the clock is {seconds} s {direction} the CA's");
    match offset.abs() {
        small if small <= CLOCK_GOOD => Check::ok(Topic::Clock, cause),
        usable if usable <= CLOCK_USABLE => Check::warning(Topic::Clock, cause, remedy),
        _ => Check::fails(Topic::Clock, cause, remedy),
    }
}

/// How often an order is put off because it would fail for certain; then the CA has the last word.
const MAX_PUT_OFFS: u32 = 2;

/// Whether to wait with an order, and why: pure. `public`: whether the CA looks from outside, where
/// what was looked at counts; `before`: how often it was put off already.
pub fn put_off(checks: &[Check], public: bool, before: u32) -> Option<&Check> {
    let mut hopeless = checks.iter().filter(|check| check.hopeless);
    hopeless.next().filter(|_| public && before < MAX_PUT_OFFS)
}

/// An order that was put off, as an error: what CAA forbids this CA another one may do, and what is
/// wrong with our own disk is as wrong for each.
pub fn unsent(what: String, check: &Check) -> AcmeError {
    AcmeError {
        problem: (check.topic == Topic::Caa).then(|| "caa".to_owned()),
        advice: check.remedy.clone(),
        unsent: true,
        ..AcmeError::new(
            Class::Operator,
            what,
            format!("put off by a preflight: {}", check.cause),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        for (offset, verdict) in [
            (Some(Duration::seconds(30)), Verdict::Ok),
            (Some(Duration::seconds(-30)), Verdict::Ok),
            (Some(Duration::minutes(-10)), Verdict::Warning),
            (Some(Duration::hours(5)), Verdict::Fails),
            (None, Verdict::Warning),
        ] {
            assert_eq!(clock(offset).verdict, verdict, "{offset:?}");
        }
        let cause = clock(Some(Duration::hours(5))).cause;
        assert!(cause.contains("behind"), "{cause}");
    }

    #[test]
    fn what_is_hopeless_puts_an_order_off_twice_and_never_for_good() {
        let bad = Check::fails(Topic::Caa, "forbidden", "allow it").hopeless();
        let checks = [Check::ok(Topic::Address, "fine"), bad];
        let check = put_off(&checks, true, 0).unwrap();
        assert_eq!(check.cause, "forbidden");
        let error = unsent("order for a.test".to_owned(), check);
        assert!(error.is_for_another_ca());
        assert_eq!(
            error.to_string(),
            "order for a.test: put off by a preflight: forbidden (caa); allow it"
        );
        assert!(put_off(&checks, true, 1).is_some());
        assert!(put_off(&checks, true, 2).is_none());
        assert!(
            put_off(&checks, false, 0).is_none(),
            "a private CA may look elsewhere"
        );
        let disk = Check::fails(Topic::StateDirectory, "full", "free some space").hopeless();
        let error = unsent("order for a.test".to_owned(), &disk);
        assert!(!error.is_for_another_ca(), "{error}");
        let doubtful = [Check::fails(Topic::Reachable, "closed", "open it")];
        assert!(put_off(&doubtful, true, 0).is_none());
    }
}
