//! What the authority says of its revoked certificates: a list (RFC 5280) and a responder (RFC
//! 6960), which its certificates name where the script says so.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, CrlDistributionPoint, CustomExtension,
    Issuer, KeyIdMethod, KeyPair, RevocationReason, RevokedCertParams, SerialNumber, SigningKey,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_cert::Certificate;
use x509_cert::der::asn1::{BitString, GeneralizedTime, ObjectIdentifier};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::CrlReason;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_ocsp::{
    BasicOcspResponse, CertStatus, OcspGeneralizedTime, OcspRequest, OcspResponse, ResponderId,
    ResponseData, RevokedInfo, SingleResponse,
};

use super::Shared;
use super::problem::malformed;
use super::protocol::Answer;
use crate::support::certs::{TestCa, from_hex, serial_of};
use crate::support::clock;

/// Where certificates say that their revocation is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Named {
    #[default]
    Nowhere,
    InList,
    ByResponder,
}

/// What the list and the responder say.
#[derive(Clone, Debug, Default)]
pub struct Revocation {
    pub named: Named,
    /// The first of all certificates is revoked for this reason.
    pub first: Option<RevocationReason>,
    /// Signed by somebody else of the same name.
    pub forged: bool,
}

impl Revocation {
    /// Writes into a certificate where to ask.
    pub(super) fn name_in(&self, params: &mut CertificateParams, base: &str) {
        match self.named {
            Named::Nowhere => {}
            Named::InList => {
                let uris = vec![format!("{base}/crl")];
                params.crl_distribution_points = vec![CrlDistributionPoint { uris }];
            }
            Named::ByResponder => {
                let access = access(&format!("{base}/ocsp"));
                params.custom_extensions.push(access);
            }
        }
    }
}

impl Shared {
    pub(super) fn revocation(&self, path: &str, body: &[u8]) -> Answer {
        let script = self.script.lock().unwrap().revocation.clone();
        let forger = TestCa::new();
        let issuer = match script.forged {
            true => &forger.intermediate,
            false => &self.ca.intermediate,
        };
        let first = self.book.lock().unwrap().certificates.first().cloned();
        let revoked = first.and_then(|pem| {
            let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
            Some((serial_of(&leaf), script.first?))
        });
        match path {
            "/crl" => Ok(list(issuer, revoked)),
            _ => self.responder(issuer, revoked, body),
        }
    }

    fn responder(
        &self,
        issuer: &Issuer<'static, KeyPair>,
        revoked: Option<(String, RevocationReason)>,
        body: &[u8],
    ) -> Answer {
        let request = OcspRequest::from_der(body).map_err(|error| malformed(error.to_string()))?;
        let asked = &request.tbs_request.request_list[0].req_cert;
        let revoked = revoked.filter(|(serial, _)| {
            let serial = from_hex(serial);
            let asked = asked.serial_number.as_bytes();
            let stripped = serial.iter().position(|byte| *byte != 0).unwrap_or(0);
            asked.ends_with(&serial[stripped..])
        });
        let now = clock::now();
        let cert_status = match revoked {
            None => CertStatus::good(),
            Some((_, reason)) => CertStatus::Revoked(RevokedInfo {
                revocation_time: generalized(now - Duration::HOUR),
                revocation_reason: Some(match reason {
                    RevocationReason::KeyCompromise => CrlReason::KeyCompromise,
                    _ => CrlReason::Superseded,
                }),
            }),
        };
        let pem = self.ca.intermediate_pem.as_bytes();
        let own = CertificateDer::from_pem_slice(pem).expect("PEM");
        let own = Certificate::from_der(&own).expect("a certificate");
        let data = ResponseData {
            version: Default::default(),
            responder_id: ResponderId::ByName(own.tbs_certificate.subject),
            produced_at: generalized(now),
            responses: vec![SingleResponse {
                cert_id: asked.clone(),
                cert_status,
                this_update: generalized(now - Duration::HOUR),
                next_update: Some(generalized(now + Duration::days(1))),
                single_extensions: None,
            }],
            response_extensions: None,
        };
        let signed = issuer.key().sign(&data.to_der().expect("DER"));
        let basic = BasicOcspResponse {
            tbs_response_data: data,
            signature_algorithm: AlgorithmIdentifierOwned {
                oid: ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"),
                parameters: None,
            },
            signature: BitString::from_bytes(&signed.expect("signed")).expect("bytes"),
            certs: None,
        };
        let response = OcspResponse::successful(basic).expect("DER");
        let media = [(header::CONTENT_TYPE, "application/ocsp-response")];
        Ok((media, response.to_der().expect("DER")).into_response())
    }
}

fn list(
    issuer: &Issuer<'static, KeyPair>,
    revoked: Option<(String, RevocationReason)>,
) -> Response {
    let now = clock::now();
    let entry = revoked.map(|(serial, reason)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&from_hex(&serial)),
        revocation_time: now - Duration::HOUR,
        reason_code: Some(reason),
        invalidity_date: None,
    });
    let params = CertificateRevocationListParams {
        this_update: now - Duration::HOUR,
        next_update: now + Duration::days(1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: entry.into_iter().collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = params.signed_by(issuer).expect("signed");
    let media = [(header::CONTENT_TYPE, "application/pkix-crl")];
    (media, list.der().to_vec()).into_response()
}

fn generalized(at: OffsetDateTime) -> OcspGeneralizedTime {
    let since = std::time::Duration::from_secs(at.unix_timestamp().unsigned_abs());
    OcspGeneralizedTime(GeneralizedTime::from_unix_duration(since).expect("a time"))
}

/// Authority information access with one responder (RFC 5280 section 4.2.2.1).
fn access(url: &str) -> CustomExtension {
    let value = |tag: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).expect("a short address");
        assert!(length < 0x80, "a short address");
        [&[tag, length][..], content].concat()
    };
    let ocsp = value(0x06, &[0x2b, 6, 1, 5, 5, 7, 0x30, 1]);
    let description = [ocsp, value(0x86, url.as_bytes())].concat();
    let descriptions = value(0x30, &value(0x30, &description));
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], descriptions)
}
