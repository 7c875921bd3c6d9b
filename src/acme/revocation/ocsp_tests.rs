use boring::hash::MessageDigest;
use boring::pkey::PKey;
use boring::sign::Signer;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use time::Duration;
use time::macros::datetime;
use x509_cert::Certificate;
use x509_cert::der::asn1::{BitString, GeneralizedTime};
use x509_cert::ext::pkix::CrlReason;
use x509_ocsp::{ResponseData, RevokedInfo};

use super::*;

const NOW: OffsetDateTime = datetime!(2026-11-26 12:00 UTC);

/// An authority information access extension with one responder.
pub fn access(url: &str) -> CustomExtension {
    let mut location = vec![0x86, u8::try_from(url.len()).unwrap()];
    location.extend(url.as_bytes());
    let method = [0x06, 8, 0x2b, 6, 1, 5, 5, 7, 0x30, 1];
    let sequence = |content: &[u8]| {
        let mut bytes = vec![0x30, u8::try_from(content.len()).unwrap()];
        bytes.extend(content);
        bytes
    };
    let description = sequence(&[&method[..], &location].concat());
    let oid = [1, 3, 6, 1, 5, 5, 7, 1, 1];
    CustomExtension::from_oid_content(&oid, sequence(&description))
}

struct Signing {
    der: Vec<u8>,
    key: KeyPair,
    params: CertificateParams,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = NOW - Duration::days(30);
    params.not_after = NOW + Duration::days(30);
    params
}

fn ca(name: &str) -> Signing {
    let key = KeyPair::generate().unwrap();
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let der = params.self_signed(&key).unwrap().der().to_vec();
    Signing { der, key, params }
}

fn delegate(of: &Signing, change: impl FnOnce(&mut CertificateParams)) -> Signing {
    let key = KeyPair::generate().unwrap();
    let mut params = params("A responder");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
    change(&mut params);
    let issuer = Issuer::from_params(&of.params, &of.key);
    let der = params.signed_by(&key, &issuer).unwrap().der().to_vec();
    Signing { der, key, params }
}

fn at(at: OffsetDateTime) -> OcspGeneralizedTime {
    let since = std::time::Duration::from_secs(at.unix_timestamp().unsigned_abs());
    OcspGeneralizedTime(GeneralizedTime::from_unix_duration(since).unwrap())
}

fn revoked(reason: Option<CrlReason>) -> CertStatus {
    CertStatus::Revoked(RevokedInfo {
        revocation_time: at(NOW - Duration::DAY),
        revocation_reason: reason,
    })
}

/// A whole response, signed by `signer`, whose certificate comes with it.
fn response(question: &Question, status: CertStatus, signer: &Signing) -> Vec<u8> {
    let certificate = Certificate::from_der(&signer.der).unwrap();
    let data = ResponseData {
        version: Default::default(),
        responder_id: ResponderId::ByName(certificate.tbs_certificate.subject.clone()),
        produced_at: at(NOW),
        responses: vec![SingleResponse {
            cert_id: question.id.clone(),
            cert_status: status,
            this_update: at(NOW - Duration::HOUR),
            next_update: Some(at(NOW + Duration::days(3))),
            single_extensions: None,
        }],
        response_extensions: None,
    };
    let key = PKey::private_key_from_pem(signer.key.serialize_pem().as_bytes()).unwrap();
    let mut signing = Signer::new(MessageDigest::sha256(), &key).unwrap();
    signing.update(&data.to_der().unwrap()).unwrap();
    let basic = BasicOcspResponse {
        tbs_response_data: data,
        signature_algorithm: AlgorithmIdentifierOwned {
            oid: ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"),
            parameters: None,
        },
        signature: BitString::from_bytes(&signing.sign_to_vec().unwrap()).unwrap(),
        certs: Some(vec![certificate]),
    };
    OcspResponse::successful(basic).unwrap().to_der().unwrap()
}

fn question(ca: &Signing) -> Question {
    Question::new("00cafe01", &ca.der).unwrap()
}

#[test]
fn the_issuer_says_what_is_revoked_and_why() {
    let ca = ca("The CA");
    let question = question(&ca);
    let read = |status| {
        let response = response(&question, status, &ca);
        question.read(&response, &ca.der, NOW)
    };
    let good = read(CertStatus::good()).unwrap();
    assert!(good.revoked.is_empty());
    assert_eq!(good.next_update, Some(NOW + Duration::days(3)));
    for (reason, name) in [
        (None, "unspecified"),
        (Some(CrlReason::KeyCompromise), "keyCompromise"),
        (Some(CrlReason::Superseded), "superseded"),
    ] {
        let finding = read(revoked(reason)).unwrap();
        assert_eq!(finding.revoked, [("00cafe01".to_owned(), Some(name))]);
    }
    let unknown = read(CertStatus::unknown()).unwrap_err();
    assert!(
        matches!(unknown, RevocationError::Responder(_)),
        "{unknown}"
    );
    assert!(question.to_der().unwrap().len() > 60);
}

#[test]
fn a_responder_speaks_for_the_issuer_only_if_that_says_so() {
    let ca = ca("The CA");
    let question = question(&ca);
    let read = |signer: &Signing| {
        let response = response(&question, revoked(None), signer);
        question.read(&response, &ca.der, NOW)
    };
    let authorised = delegate(&ca, |_| {});
    assert_eq!(read(&authorised).unwrap().revoked.len(), 1);
    let for_something_else = delegate(&ca, |params| params.extended_key_usages.clear());
    let expired = delegate(&ca, |params| params.not_after = NOW - Duration::DAY);
    let of_another = delegate(&super::tests::ca("Another"), |_| {});
    for signer in [&for_something_else, &expired, &of_another] {
        let refused = read(signer).unwrap_err();
        assert!(
            matches!(refused, RevocationError::OtherScope(_)),
            "{refused}"
        );
    }
    // By the right name, and by the wrong key.
    let impostor = super::tests::ca("The CA");
    assert_eq!(read(&impostor).unwrap_err(), RevocationError::Signature);
}

#[test]
fn an_answer_about_something_else_or_of_another_time_says_nothing() {
    let ca = ca("The CA");
    let (question, other) = (question(&ca), Question::new("02", &ca.der).unwrap());
    let answer = response(&other, revoked(None), &ca);
    let refused = question.read(&answer, &ca.der, NOW).unwrap_err();
    assert!(
        matches!(refused, RevocationError::OtherScope(_)),
        "{refused}"
    );
    let answer = response(&question, revoked(None), &ca);
    let late = question.read(&answer, &ca.der, NOW + Duration::days(4));
    assert!(matches!(late, Err(RevocationError::OutOfDate(_))));
    let early = question.read(&answer, &ca.der, NOW - Duration::DAY);
    assert!(matches!(early, Err(RevocationError::Future(_))));
    let busy = OcspResponse::try_later().to_der().unwrap();
    let busy = question.read(&busy, &ca.der, NOW).unwrap_err();
    assert!(busy.to_string().contains("TryLater"), "{busy}");
    for nonsense in [&b""[..], b"<html>"] {
        let refused = question.read(nonsense, &ca.der, NOW).unwrap_err();
        assert!(matches!(refused, RevocationError::Unreadable { .. }));
    }
}
