//! Which challenge to answer, and how challenge types are spelt: pure decisions.

use instant_acme::ChallengeType as AcmeChallenge;

use crate::config::ChallengeType;

/// The challenge to answer: the first configured one that is offered, other than the one that
/// failed last if there is another. The error says what would help.
pub(super) fn choose<'a>(
    configured: &[ChallengeType],
    avoid: Option<ChallengeType>,
    offered: impl Iterator<Item = &'a AcmeChallenge> + Clone,
) -> Result<ChallengeType, String> {
    let is_offered = |kind: &ChallengeType| offered.clone().any(|it| *it == acme_type(*kind));
    let mut usable = configured.iter().copied().filter(is_offered);
    let first = usable.next();
    match (first, usable.next()) {
        (Some(first), Some(second)) if avoid == Some(first) => Ok(second),
        (Some(first), _) => Ok(first),
        (None, _) => {
            let offered: Vec<String> = offered.map(|it| format!("{it:?}")).collect();
            Err(format!(
                "the CA offers none of the configured challenges, but {}; add one of them to `challenges`",
                offered.join(", ")
            ))
        }
    }
}

pub(super) fn acme_type(kind: ChallengeType) -> AcmeChallenge {
    match kind {
        ChallengeType::TlsAlpn01 => AcmeChallenge::TlsAlpn01,
        ChallengeType::Http01 => AcmeChallenge::Http01,
        ChallengeType::Dns01 => AcmeChallenge::Dns01,
    }
}

/// A challenge type as configuration and ledger spell it.
pub fn challenge_name(kind: ChallengeType) -> &'static str {
    match kind {
        ChallengeType::TlsAlpn01 => "tls-alpn-01",
        ChallengeType::Http01 => "http-01",
        ChallengeType::Dns01 => "dns-01",
    }
}

/// The reverse of [`challenge_name`].
pub fn challenge_from_name(text: &str) -> Option<ChallengeType> {
    const ALL: [ChallengeType; 3] = [
        ChallengeType::TlsAlpn01,
        ChallengeType::Http01,
        ChallengeType::Dns01,
    ];
    ALL.into_iter().find(|kind| challenge_name(*kind) == text)
}
