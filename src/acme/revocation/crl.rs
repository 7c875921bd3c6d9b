//! Certificate revocation lists (RFC 5280 section 5): read, and verified by the issuer's key.

use std::collections::HashSet;

use time::OffsetDateTime;
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::{Finding, RevocationError, check_dates, full_names, reason, signature};

const DELTA_CRL_INDICATOR: &str = "2.5.29.27";

/// Whose list it is: the distinguished name as it is written there.
pub(super) fn issuer_of(der: &[u8]) -> Result<String, RevocationError> {
    Ok(parse(der)?.issuer().to_string())
}

/// What the list at `url` says of the certificates with these serial numbers, all of them by
/// `issuer`, a certificate in DER.
pub(super) fn read(
    der: &[u8],
    url: &str,
    issuer: &[u8],
    wanted: &HashSet<&str>,
    now: OffsetDateTime,
) -> Result<Finding, RevocationError> {
    let list = parse(der)?;
    check_issuer(&list, issuer)?;
    check_scope(&list, url)?;
    let key = signature::key_of(issuer)?;
    signature::verify(
        &key,
        &list.signature_algorithm.algorithm.to_id_string(),
        &list.signature_value.data,
        list.tbs_cert_list.as_ref(),
    )?;
    let next_update = list.next_update().map(|at| at.to_datetime());
    check_dates(now, list.last_update().to_datetime(), next_update)?;
    let revoked = list.iter_revoked_certificates().filter_map(|entry| {
        let serial = hex(entry.raw_serial());
        if !wanted.contains(serial.as_str()) {
            return None;
        }
        let code = entry.reason_code().map_or(0, |(_, code)| code.0);
        Some((serial, reason(code)?))
    });
    Ok(Finding {
        revoked: revoked.collect(),
        next_update,
    })
}

fn parse(der: &[u8]) -> Result<CertificateRevocationList<'_>, RevocationError> {
    let unreadable = |cause: String| RevocationError::Unreadable {
        what: "revocation list",
        cause,
    };
    match CertificateRevocationList::from_der(der) {
        Ok(([], list)) => Ok(list),
        Ok(_) => Err(unreadable("there are bytes after it".to_owned())),
        Err(error) => Err(unreadable(error.to_string())),
    }
}

fn check_issuer(
    list: &CertificateRevocationList<'_>,
    issuer: &[u8],
) -> Result<(), RevocationError> {
    let (_, issuer) =
        X509Certificate::from_der(issuer).map_err(|error| RevocationError::Unreadable {
            what: "certificate of the issuer",
            cause: error.to_string(),
        })?;
    if list.issuer().as_raw() != issuer.subject().as_raw() {
        return Err(RevocationError::OtherIssuer(issuer.subject().to_string()));
    }
    match issuer.key_usage() {
        Ok(Some(usage)) if !usage.value.crl_sign() => Err(RevocationError::OtherScope(
            "its issuer may not sign revocation lists".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// RFC 5280 section 6.3.3: a list may be for others only, and one that has more to say than is
/// understood here is not believed.
fn check_scope(list: &CertificateRevocationList<'_>, url: &str) -> Result<(), RevocationError> {
    let other = |cause: &str| Err(RevocationError::OtherScope(cause.to_owned()));
    for extension in list.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::IssuingDistributionPoint(point) => {
                if point.only_contains_ca_certs || point.only_contains_attribute_certs {
                    return other("it has other kinds of certificates only");
                }
                if point.indirect_crl {
                    return other("it has certificates of other issuers");
                }
                if let Some(names) = &point.distribution_point
                    && !names_url(names, url)
                {
                    return other("it was published for another address");
                }
            }
            _ if extension.oid.to_id_string() == DELTA_CRL_INDICATOR => {
                return other("it has the changes to another list only");
            }
            ParsedExtension::UnsupportedExtension { .. } if extension.critical => {
                return other("it has a critical extension that is not known here");
            }
            _ => {}
        }
    }
    Ok(())
}

fn names_url(names: &DistributionPointName<'_>, url: &str) -> bool {
    let mut names = full_names(names).iter();
    names.any(|name| matches!(name, GeneralName::URI(uri) if *uri == url))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
        CrlIssuingDistributionPoint, CrlScope, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
        KeyUsagePurpose, RevocationReason, RevokedCertParams, SerialNumber,
    };
    use time::Duration;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-26 12:00 UTC);
    const URL: &str = "http://crl.test/1";

    struct Authority {
        der: Vec<u8>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn authority(name: &str, usages: &[KeyUsagePurpose]) -> Authority {
        with_key(KeyPair::generate().unwrap(), name, usages)
    }

    fn with_key(key: KeyPair, name: &str, usages: &[KeyUsagePurpose]) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.to_vec();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Authority {
            der,
            issuer: Issuer::new(params, key),
        }
    }

    fn ca(name: &str) -> Authority {
        authority(
            name,
            &[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign],
        )
    }

    fn params() -> CertificateRevocationListParams {
        let revoked = |serial: u64, reason| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: NOW - Duration::DAY,
            reason_code: reason,
            invalidity_date: None,
        };
        CertificateRevocationListParams {
            this_update: NOW - Duration::HOUR,
            next_update: NOW + Duration::days(7),
            crl_number: SerialNumber::from(7),
            issuing_distribution_point: None,
            revoked_certs: vec![
                revoked(1, Some(RevocationReason::KeyCompromise)),
                revoked(2, None),
                revoked(3, Some(RevocationReason::Superseded)),
                revoked(4, Some(RevocationReason::RemoveFromCrl)),
            ],
            key_identifier_method: KeyIdMethod::Sha256,
        }
    }

    fn read_as(
        ca: &Authority,
        params: CertificateRevocationListParams,
        signer: &Authority,
        now: OffsetDateTime,
    ) -> Result<Finding, RevocationError> {
        let list = params.signed_by(&signer.issuer).unwrap();
        let wanted = HashSet::from(["01", "02", "04", "05"]);
        read(list.der(), URL, &ca.der, &wanted, now)
    }

    #[test]
    fn what_is_on_the_list_is_found_with_its_reason() {
        let usages = [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_RSA_SHA256,
            &rcgen::PKCS_ED25519,
        ] {
            let key = || KeyPair::generate_for(algorithm).unwrap();
            let ca = with_key(key(), "The CA", &usages);
            let finding = read_as(&ca, params(), &ca, NOW).unwrap();
            let expected = [
                ("01".to_owned(), Some("keyCompromise")),
                ("02".to_owned(), Some("unspecified")),
            ];
            assert_eq!(finding.revoked, expected);
            assert_eq!(finding.next_update, Some(NOW + Duration::days(7)));
            let forger = with_key(key(), "The CA", &usages);
            let forged = read_as(&ca, params(), &forger, NOW).unwrap_err();
            assert_eq!(forged, RevocationError::Signature);
        }
    }

    #[test]
    fn a_list_that_somebody_else_signed_says_nothing() {
        let (real, other, same_name) = (ca("The CA"), ca("Another"), ca("The CA"));
        let by = |signer: &Authority| read_as(&real, params(), signer, NOW).unwrap_err();
        assert!(matches!(by(&other), RevocationError::OtherIssuer(_)));
        assert_eq!(by(&same_name), RevocationError::Signature);
        // One bit in what is signed.
        let list = params().signed_by(&real.issuer).unwrap();
        let mut bytes = list.der().to_vec();
        let serial = bytes.len() / 2;
        bytes[serial] ^= 1;
        assert!(read(&bytes, URL, &real.der, &HashSet::new(), NOW).is_err());
        let no_crls = authority("No CRLs", &[KeyUsagePurpose::KeyCertSign]);
        // It could not even be made with rcgen, which asks for the usage as well.
        let key = KeyPair::generate().unwrap();
        let mut may = CertificateParams::default();
        may.distinguished_name.push(DnType::CommonName, "No CRLs");
        may.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        may.key_usages = vec![KeyUsagePurpose::CrlSign];
        let signer = Authority {
            der: Vec::new(),
            issuer: Issuer::new(may, key),
        };
        let refused = read_as(&no_crls, params(), &signer, NOW).unwrap_err();
        assert!(
            matches!(refused, RevocationError::OtherScope(_)),
            "{refused}"
        );
    }

    #[test]
    fn a_list_of_another_time_says_nothing() {
        let ca = ca("The CA");
        let at = |now| read_as(&ca, params(), &ca, now).unwrap_err();
        let late = NOW + Duration::days(8);
        assert!(matches!(at(late), RevocationError::OutOfDate(_)));
        let early = NOW - Duration::hours(2);
        assert!(matches!(at(early), RevocationError::Future(_)));
    }

    #[test]
    fn a_list_for_others_says_nothing() {
        let ca = ca("The CA");
        let scoped = |uri: &str, scope| {
            let uris = vec![uri.to_owned()];
            let mut params = params();
            params.issuing_distribution_point = Some(CrlIssuingDistributionPoint {
                distribution_point: CrlDistributionPoint { uris },
                scope,
            });
            read_as(&ca, params, &ca, NOW)
        };
        assert!(scoped(URL, Some(CrlScope::UserCertsOnly)).is_ok());
        assert!(scoped(URL, None).is_ok());
        for (uri, scope) in [
            ("http://crl.test/2", Some(CrlScope::UserCertsOnly)),
            (URL, Some(CrlScope::CaCertsOnly)),
        ] {
            let refused = scoped(uri, scope).unwrap_err();
            assert!(
                matches!(refused, RevocationError::OtherScope(_)),
                "{refused}"
            );
        }
    }

    #[test]
    fn nonsense_is_no_list() {
        let ca = ca("The CA");
        for bytes in [&b""[..], b"<html>", &[0x30, 0x03, 1, 2, 3], &ca.der] {
            let refused = read(bytes, URL, &ca.der, &HashSet::new(), NOW).unwrap_err();
            assert!(
                matches!(refused, RevocationError::Unreadable { .. }),
                "{refused}"
            );
        }
    }
}
