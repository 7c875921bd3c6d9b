//! Whether a record has arrived: what each server said is judged purely, the asking is around it.

use std::fmt;
use std::time::{Duration, Instant};

use super::lookup::{Lookup, NameServer};
use super::{DnsError, TxtRecord};

/// Between two rounds of questions, first and last.
const FIRST_POLL: Duration = Duration::from_millis(250);
const LAST_POLL: Duration = Duration::from_secs(5);
/// A server that said nothing in so many rounds is left out: the CA's resolvers do the same.
const SILENT_ROUNDS: u32 = 3;

/// What one server, at all its addresses, says about one record.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Has,
    /// With the values it has instead.
    Lacks(Vec<String>),
    Silent(String),
}

/// What one round of questions comes to.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Everywhere,
    /// At every server that answers; these do not.
    AtAllThatAnswer(Vec<String>),
    NotYet(String),
}

/// Judges a round. `round`: how many there were, this one included.
fn judge(seen: &[(String, Seen)], round: u32) -> Verdict {
    let silent: Vec<String> = seen
        .iter()
        .filter(|(_, seen)| matches!(seen, Seen::Silent(_)))
        .map(|(server, _)| server.clone())
        .collect();
    let lacking = seen.iter().any(|(_, seen)| matches!(seen, Seen::Lacks(_)));
    let somewhere = seen.iter().any(|(_, seen)| *seen == Seen::Has);
    if somewhere && !lacking && silent.is_empty() {
        Verdict::Everywhere
    } else if somewhere && !lacking && round >= SILENT_ROUNDS {
        Verdict::AtAllThatAnswer(silent)
    } else {
        let missing = seen.iter().filter(|(_, seen)| *seen != Seen::Has);
        let told: Vec<String> = missing
            .map(|(server, seen)| format!("{server} {seen}"))
            .collect();
        Verdict::NotYet(told.join(", "))
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Seen::Has => f.write_str("has it"),
            Seen::Lacks(values) if values.is_empty() => f.write_str("has none"),
            Seen::Lacks(values) => write!(f, "has {values:?}"),
            Seen::Silent(cause) => write!(f, "does not answer ({cause})"),
        }
    }
}

/// One server's addresses together: a host without IPv6 still hears the others.
fn together(answers: Vec<Seen>) -> Seen {
    let silent = || Seen::Silent("it has no address".to_owned());
    let worst = |seen: &Seen| match seen {
        Seen::Lacks(_) => 0,
        Seen::Has => 1,
        Seen::Silent(_) => 2,
    };
    answers.into_iter().min_by_key(worst).unwrap_or_else(silent)
}

/// Waits until every authoritative server of their zones has the records.
pub(super) async fn wait(
    lookup: &Lookup,
    records: &[TxtRecord],
    limit: Duration,
) -> Result<(), DnsError> {
    let deadline = Instant::now() + limit;
    for record in records {
        let servers = lookup.servers_of(&record.zone).await?;
        wait_for_one(lookup, record, &servers, deadline, limit).await?;
    }
    Ok(())
}

async fn wait_for_one(
    lookup: &Lookup,
    record: &TxtRecord,
    servers: &[NameServer],
    deadline: Instant,
    limit: Duration,
) -> Result<(), DnsError> {
    let mut poll = FIRST_POLL;
    for round in 1.. {
        let servers = match judge(&look(lookup, record, servers).await, round) {
            Verdict::Everywhere => return Ok(()),
            Verdict::AtAllThatAnswer(silent) => {
                tracing::warn!(
                    name = record.name,
                    ?silent,
                    "some DNS servers of the zone do not answer; the others have the TXT record"
                );
                return Ok(());
            }
            Verdict::NotYet(servers) => servers,
        };
        if Instant::now() + poll >= deadline {
            let name = record.name.clone();
            return Err(DnsError::NotSeen {
                name,
                limit,
                servers,
            });
        }
        tracing::debug!(name = record.name, servers, "waiting for a TXT record");
        tokio::time::sleep(poll).await;
        poll = (poll * 2).min(LAST_POLL);
    }
    Ok(())
}

async fn look(lookup: &Lookup, record: &TxtRecord, servers: &[NameServer]) -> Vec<(String, Seen)> {
    let mut seen = Vec::new();
    for server in servers {
        let mut answers = Vec::new();
        for address in &server.addresses {
            let told = match lookup.txt_at(*address, &record.name).await {
                Ok(values) if values.contains(&record.value) => Seen::Has,
                Ok(values) => Seen::Lacks(values),
                Err(cause) => Seen::Silent(cause),
            };
            answers.push(told);
        }
        seen.push((server.name.clone(), together(answers)));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacks() -> Seen {
        Seen::Lacks(vec!["old".to_owned()])
    }

    fn silent() -> Seen {
        Seen::Silent("timed out".to_owned())
    }

    #[test]
    fn a_record_has_to_be_at_every_server_that_answers() {
        let judged = |seen: &[Seen], round| {
            let named: Vec<_> = seen
                .iter()
                .enumerate()
                .map(|(at, seen)| (format!("ns{at}"), seen.clone()))
                .collect();
            judge(&named, round)
        };
        assert_eq!(judged(&[Seen::Has, Seen::Has], 1), Verdict::Everywhere);
        let not_yet = |text: &str| Verdict::NotYet(text.to_owned());
        assert_eq!(
            judged(&[Seen::Has, lacks()], 99),
            not_yet("ns1 has [\"old\"]")
        );
        let timed_out = "ns1 does not answer (timed out)";
        assert_eq!(judged(&[Seen::Has, silent()], 2), not_yet(timed_out));
        assert_eq!(
            judged(&[Seen::Has, silent()], 3),
            Verdict::AtAllThatAnswer(vec!["ns1".to_owned()])
        );
        // Nobody has it, so patience changes nothing.
        assert!(matches!(judged(&[silent()], 99), Verdict::NotYet(_)));
        assert!(matches!(judged(&[], 99), Verdict::NotYet(_)));
    }

    #[test]
    fn the_addresses_of_one_server_speak_together() {
        assert_eq!(together(vec![silent(), Seen::Has]), Seen::Has);
        assert_eq!(together(vec![Seen::Has, lacks()]), lacks());
        assert_eq!(together(vec![silent()]), silent());
        assert!(matches!(together(Vec::new()), Seen::Silent(_)));
    }
}
