//! Which challenge to answer, and how challenge types are spelt: pure decisions.

use instant_acme::ChallengeType as AcmeChallenge;

use crate::config::ChallengeType;

/// The configured challenges in the order in which to try them: as configured, but those that
/// failed since they last succeeded come later. `newest_first`: what earlier orders used, and
/// whether it went well.
pub fn learned(
    configured: &[ChallengeType],
    newest_first: &[(ChallengeType, bool)],
) -> Vec<ChallengeType> {
    let failures = |kind: &ChallengeType| {
        let own = newest_first.iter().filter(|(other, _)| other == kind);
        own.take_while(|(_, went_well)| !went_well).count()
    };
    let mut order = configured.to_vec();
    // The sort is stable: equals stay as configured.
    order.sort_by_key(failures);
    order
}

/// The challenges that can be answered, best first. The error says what would help.
pub(super) fn usable<'a>(
    preferred: &[ChallengeType],
    offered: impl Iterator<Item = &'a AcmeChallenge> + Clone,
) -> Result<Vec<ChallengeType>, String> {
    let is_offered = |kind: &ChallengeType| offered.clone().any(|it| *it == acme_type(*kind));
    let usable: Vec<_> = preferred.iter().copied().filter(is_offered).collect();
    if !usable.is_empty() {
        return Ok(usable);
    }
    let offered: Vec<String> = offered.map(offered_name).collect();
    Err(format!(
        "the CA offers none of the configured challenges, but {}; add one of them to `challenges`",
        offered.join(", ")
    ))
}

fn offered_name(kind: &AcmeChallenge) -> String {
    match kind {
        AcmeChallenge::Unknown(name) => name.clone(),
        known => ALL
            .into_iter()
            .find(|kind| acme_type(*kind) == *known)
            .map_or_else(
                || format!("{known:?}"),
                |kind| challenge_name(kind).to_owned(),
            ),
    }
}

const ALL: [ChallengeType; 4] = [
    ChallengeType::TlsAlpn01,
    ChallengeType::Http01,
    ChallengeType::Dns01,
    ChallengeType::DnsPersist01,
];

pub(super) fn acme_type(kind: ChallengeType) -> AcmeChallenge {
    match kind {
        ChallengeType::TlsAlpn01 => AcmeChallenge::TlsAlpn01,
        ChallengeType::Http01 => AcmeChallenge::Http01,
        ChallengeType::Dns01 => AcmeChallenge::Dns01,
        ChallengeType::DnsPersist01 => AcmeChallenge::Unknown("dns-persist-01".to_owned()),
    }
}

/// A challenge type as configuration and ledger spell it.
pub fn challenge_name(kind: ChallengeType) -> &'static str {
    match kind {
        ChallengeType::TlsAlpn01 => "tls-alpn-01",
        ChallengeType::Http01 => "http-01",
        ChallengeType::Dns01 => "dns-01",
        ChallengeType::DnsPersist01 => "dns-persist-01",
    }
}

/// The reverse of [`challenge_name`].
pub fn challenge_from_name(text: &str) -> Option<ChallengeType> {
    ALL.into_iter().find(|kind| challenge_name(*kind) == text)
}

#[cfg(test)]
mod tests {
    use ChallengeType::{Dns01, DnsPersist01, Http01, TlsAlpn01};

    use super::*;

    #[test]
    fn what_failed_since_it_went_well_comes_later() {
        let all = [TlsAlpn01, Http01, Dns01];
        for (newest_first, expected) in [
            (&[][..], [TlsAlpn01, Http01, Dns01]),
            (&[(TlsAlpn01, false)], [Http01, Dns01, TlsAlpn01]),
            (
                &[(Http01, true), (TlsAlpn01, false)],
                [Http01, Dns01, TlsAlpn01],
            ),
            (&[(TlsAlpn01, true), (TlsAlpn01, false)], all),
            (
                &[(Http01, false), (TlsAlpn01, false)],
                [Dns01, TlsAlpn01, Http01],
            ),
            (
                &[(TlsAlpn01, false), (Http01, false), (TlsAlpn01, false)],
                [Dns01, Http01, TlsAlpn01],
            ),
        ] {
            assert_eq!(learned(&all, newest_first), expected, "{newest_first:?}");
        }
    }

    #[test]
    fn only_what_the_ca_offers() {
        let offered = [
            AcmeChallenge::Dns01,
            AcmeChallenge::Http01,
            AcmeChallenge::Unknown("dns-persist-01".to_owned()),
        ];
        let found = usable(&[DnsPersist01, TlsAlpn01, Http01], offered.iter()).unwrap();
        assert_eq!(found, [DnsPersist01, Http01]);
        let error = usable(&[TlsAlpn01], offered.iter()).unwrap_err();
        assert!(error.contains("dns-01, http-01, dns-persist-01"), "{error}");
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for kind in ALL {
            assert_eq!(challenge_from_name(challenge_name(kind)), Some(kind));
        }
    }
}
