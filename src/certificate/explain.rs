//! Which certificate a name gets, and why each other one does not: the rules of the election in
//! words, over the same ranks. Pure; it decides nothing itself.

use std::cmp::Reverse;
use std::fmt;

use time::OffsetDateTime;

use super::inventory::{self, Entry, EntryId};
use super::name::Name;
use super::overdue::{self, HostSet};
use super::table::{Claim, LiveCertificate, SourceKind, Standing};
use crate::clock;

/// A certificate that covers the name in question.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'e> {
    pub id: &'e EntryId,
    pub live: &'e LiveCertificate,
    pub standing: Standing,
    /// Whether it has the name itself, not only a wildcard above it.
    pub exact: bool,
    /// Whether its validity is still to begin.
    pub early: bool,
}

/// What becomes of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Chosen,
    /// For clients that cannot use the key of the chosen one.
    Alternate,
    NotChosen(Reason),
}

/// Why another one is better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    Expired(OffsetDateTime),
    NotYetValid(OffsetDateTime),
    /// Its files are gone.
    Vanished,
    /// Due since then and not replaced, and we have one of our own in its stead.
    Overdue(OffsetDateTime),
    /// Ours, which only stands in for files that are overdue.
    Stopgap,
    /// The chosen one has the name itself.
    Wildcard,
    /// The chosen one's source comes first.
    Source {
        own: SourceKind,
        chosen: SourceKind,
    },
    /// The chosen one began later.
    OlderStart(OffsetDateTime),
    ShorterChain {
        own: usize,
        chosen: usize,
    },
    /// The chosen one ends later.
    EarlierEnd(OffsetDateTime),
    /// The chosen one's file changed later.
    OlderFile,
    /// Nothing tells them apart but their paths.
    Path,
}

/// The certificates that cover `name`, the best first, as they rank at `now`.
pub fn candidates<'e>(
    entries: impl Iterator<Item = (&'e EntryId, &'e Entry)>,
    name: &Name,
    takeover: &HostSet,
    now: OffsetDateTime,
) -> Vec<Candidate<'e>> {
    let covering = entries.filter_map(|(id, entry)| {
        let live = entry.live.as_deref().filter(|live| live.covers(name))?;
        let exact = live.key.names().contains(name);
        Some(Candidate {
            id,
            live,
            standing: Standing {
                valid: live.key.is_valid_at(now),
                on_disk: entry.on_disk,
                claim: overdue::claim(live, &claimed(name, exact), takeover, now),
            },
            exact,
            early: now < live.key.not_before(),
        })
    });
    let (mut first, mut second): (Vec<_>, Vec<_>) = covering.partition(|it| it.exact);
    for group in [&mut first, &mut second] {
        group.sort_by_key(|it| Reverse((inventory::rank(it.standing, it.live), it.id)));
    }
    // As the table looks a name up: its own certificates, unless its wildcard's stand better.
    let standing = |group: &[Candidate<'_>]| group.first().map(|it| it.standing);
    if standing(&second) > standing(&first) {
        std::mem::swap(&mut first, &mut second);
    }
    first.append(&mut second);
    first
}

/// The name under which the certificate stands in the table.
fn claimed(name: &Name, exact: bool) -> Name {
    match name {
        Name::Dns(dns) if !exact => {
            let parent = dns.split_once('.').map_or("", |(_, parent)| parent);
            Name::Wildcard(parent.into())
        }
        other => other.clone(),
    }
}

/// A verdict on each of the [`candidates`] for one name, in their order.
pub fn explain(candidates: &[Candidate<'_>]) -> Vec<(EntryId, Verdict)> {
    let Some(chosen) = candidates.first() else {
        return Vec::new();
    };
    let is_as_good = |it: &Candidate<'_>| {
        (it.standing.valid, it.standing.on_disk) >= (chosen.standing.valid, chosen.standing.on_disk)
    };
    let alternate = candidates.iter().position(|it| {
        it.exact == chosen.exact
            && it.live.key.algorithm() != chosen.live.key.algorithm()
            && is_as_good(it)
    });
    let verdict = |(at, candidate): (usize, &Candidate<'_>)| {
        let verdict = match at {
            0 => Verdict::Chosen,
            _ if Some(at) == alternate => Verdict::Alternate,
            _ => Verdict::NotChosen(reason(candidate, chosen)),
        };
        (candidate.id.clone(), verdict)
    };
    candidates.iter().enumerate().map(verdict).collect()
}

/// The first rule by which `chosen` is better.
pub fn reason(candidate: &Candidate<'_>, chosen: &Candidate<'_>) -> Reason {
    let (own, other) = (&candidate.live.key, &chosen.live.key);
    let (standing, best) = (candidate.standing, chosen.standing);
    if best.valid && !standing.valid {
        return match candidate.early {
            true => Reason::NotYetValid(own.not_before()),
            false => Reason::Expired(own.not_after()),
        };
    }
    if best.on_disk && !standing.on_disk {
        return Reason::Vanished;
    }
    if best.claim > standing.claim {
        return match standing.claim {
            Claim::Overdue => Reason::Overdue(candidate.live.due_at()),
            Claim::Stopgap | Claim::Ordinary => Reason::Stopgap,
        };
    }
    if chosen.exact && !candidate.exact {
        return Reason::Wildcard;
    }
    if candidate.live.source != chosen.live.source {
        return Reason::Source {
            own: candidate.live.source,
            chosen: chosen.live.source,
        };
    }
    if own.not_before() != other.not_before() {
        return Reason::OlderStart(own.not_before());
    }
    if own.chain_length() != other.chain_length() {
        return Reason::ShorterChain {
            own: own.chain_length(),
            chosen: other.chain_length(),
        };
    }
    if own.not_after() != other.not_after() {
        return Reason::EarlierEnd(own.not_after());
    }
    if candidate.live.changed_at != chosen.live.changed_at {
        return Reason::OlderFile;
    }
    Reason::Path
}

impl Verdict {
    /// `chosen`, `alternate`, or the rule by which another one is better.
    pub fn as_str(&self) -> &'static str {
        match self {
            Verdict::Chosen => "chosen",
            Verdict::Alternate => "alternate",
            Verdict::NotChosen(reason) => reason.as_str(),
        }
    }
}

impl Reason {
    fn as_str(&self) -> &'static str {
        match self {
            Reason::Expired(_) => "expired",
            Reason::NotYetValid(_) => "not_yet_valid",
            Reason::Vanished => "vanished",
            Reason::Overdue(_) => "overdue",
            Reason::Stopgap => "stopgap",
            Reason::Wildcard => "wildcard",
            Reason::Source { .. } => "source",
            Reason::OlderStart(_) => "older_start",
            Reason::ShorterChain { .. } => "shorter_chain",
            Reason::EarlierEnd(_) => "earlier_end",
            Reason::OlderFile => "older_file",
            Reason::Path => "path",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Chosen => f.write_str("chosen"),
            Verdict::Alternate => {
                f.write_str("served to clients that cannot use the key of the chosen one")
            }
            Verdict::NotChosen(reason) => write!(f, "not chosen: {reason}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |at: &OffsetDateTime| clock::rfc3339(*at);
        match self {
            Reason::Expired(end) => write!(f, "it expired at {}", at(end)),
            Reason::NotYetValid(start) => write!(f, "it is not valid before {}", at(start)),
            Reason::Vanished => f.write_str("its files are gone"),
            Reason::Overdue(due) => write!(
                f,
                "it was due for renewal at {} and has not been replaced",
                at(due)
            ),
            Reason::Stopgap => f.write_str("it stands in only while files are overdue"),
            Reason::Wildcard => {
                f.write_str("the chosen one has the name itself, this one a wildcard for it")
            }
            Reason::Source { own, chosen } => {
                write!(f, "{} before {}", in_words(*chosen), in_words(*own))
            }
            Reason::OlderStart(start) => {
                write!(f, "it began at {}, before the chosen one", at(start))
            }
            Reason::ShorterChain { own, chosen } => write!(
                f,
                "its chain has {own} certificate(s), the chosen one's {chosen}"
            ),
            Reason::EarlierEnd(end) => {
                write!(f, "it ends at {}, before the chosen one", at(end))
            }
            Reason::OlderFile => f.write_str("its file is the older one"),
            Reason::Path => f.write_str("only its path differs, and one has to be chosen"),
        }
    }
}

fn in_words(source: SourceKind) -> &'static str {
    match source {
        SourceKind::File => "[[certificates.files]]",
        SourceKind::Folder => "a folder",
        SourceKind::Acme => "ACME",
        SourceKind::OnDemand => "ACME on demand",
        SourceKind::Internal => "the internal CA",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::certificate::inventory::Inventory;
    use crate::certificate::testing::Request;
    use time::Duration;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2027-01-01 12:00 UTC);

    fn id(source: SourceKind, file: &str) -> EntryId {
        EntryId {
            source,
            certificate: std::path::Path::new(file).into(),
        }
    }

    fn inventory(files: &[(SourceKind, &str, Request<'_>)], takeover: &HostSet) -> Inventory {
        let mut inventory = Inventory::new(None).taking_over(takeover.clone());
        for (source, file, request) in files {
            let id = id(*source, file);
            let live = LiveCertificate {
                key: request.issue().certified_key(),
                source: *source,
                path: id.certificate.clone(),
                private_key: None,
                loaded_at: NOW,
                changed_at: NOW,
                asked: Default::default(),
            };
            inventory.loaded(&id, Arc::new(live), NOW);
        }
        inventory
    }

    /// `file: verdict` for each certificate of a name, in order.
    fn explained(inventory: &Inventory, takeover: &HostSet, name: &str) -> Vec<String> {
        let name = name.parse().unwrap();
        let entries = inventory.entries();
        let entries = entries.iter().map(|(id, entry)| (id, &**entry));
        let found = candidates(entries, &name, takeover, NOW);
        let served = inventory.table().get(&name).map(|it| it.best.path.clone());
        assert_eq!(served, found.first().map(|it| it.live.path.clone()));
        let line = |(id, verdict): (EntryId, Verdict)| {
            format!("{}: {}", id.certificate.display(), verdict.as_str())
        };
        explain(&found).into_iter().map(line).collect()
    }

    fn request<'a>(names: &'a [&'a str]) -> Request<'a> {
        Request::new(names, NOW)
    }

    #[test]
    fn every_rule_has_its_word() {
        use SourceKind::{Acme, File, Folder, Internal};
        const A: &[&str] = &["a.test"];
        let old = Request {
            not_before: NOW - Duration::days(2),
            ..request(A)
        };
        let expired = Request {
            not_after: NOW - Duration::MINUTE,
            ..request(A)
        };
        let future = Request {
            not_before: NOW + Duration::HOUR,
            ..request(A)
        };
        let rsa = Request {
            algorithm: &rcgen::PKCS_RSA_SHA256,
            ..request(A)
        };
        let long = Request {
            intermediate: true,
            ..request(A)
        };
        let none = HostSet::default();
        let mut inventory = inventory(
            &[
                (File, "chosen", long),
                (File, "short", request(A)),
                (File, "old", old),
                (Folder, "folder", request(A)),
                (Acme, "rsa", rsa),
                (Internal, "internal", request(A)),
                (File, "wildcard", request(&["*.test"])),
                (File, "other", request(&["b.test"])),
                (Folder, "gone", request(&["a.test", "z.z.test"])),
                (File, "expired", expired),
                (File, "future", future),
            ],
            &none,
        );
        inventory.vanished(&id(Folder, "gone"), NOW);
        assert_eq!(
            explained(&inventory, &none, "a.test"),
            [
                "chosen: chosen",
                "short: shorter_chain",
                "old: older_start",
                "folder: source",
                "rsa: alternate",
                "internal: source",
                "gone: vanished",
                "future: not_yet_valid",
                "expired: expired",
                "wildcard: wildcard",
            ]
        );
        assert_eq!(explained(&inventory, &none, "*.test"), ["wildcard: chosen"]);
        assert!(explained(&inventory, &none, "y.z.test").is_empty());
    }

    #[test]
    fn a_takeover_is_explained_from_both_sides() {
        let takeover: HostSet = ["a.test".parse().unwrap()].into_iter().collect();
        let late = || Request {
            not_before: NOW - Duration::days(80),
            not_after: NOW + Duration::days(10),
            ..request(&["a.test"])
        };
        let ours = || (SourceKind::Internal, "ours", request(&["a.test"]));
        let files = [(SourceKind::File, "late", late()), ours()];
        let found = explained(&inventory(&files, &takeover), &takeover, "a.test");
        assert_eq!(found, ["ours: chosen", "late: overdue"]);
        let wildcard = (SourceKind::Folder, "wildcard", request(&["*.test"]));
        let files = [(SourceKind::File, "late", late()), ours(), wildcard];
        let found = explained(&inventory(&files, &takeover), &takeover, "a.test");
        assert_eq!(
            found,
            ["wildcard: chosen", "ours: stopgap", "late: overdue"]
        );
    }
}
