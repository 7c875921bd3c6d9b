//! Questions to OCSP responders (RFC 6960, in the profile of RFC 5019), and their answers, verified
//! by the issuer's key or by that of a responder whom the issuer authorised.

use boring::sha;
use boring::x509::X509;
use time::OffsetDateTime;
use x509_cert::der::asn1::{Null, OctetString};
use x509_cert::der::{Decode, Encode};
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_cert::spki::ObjectIdentifier;
use x509_ocsp::{
    BasicOcspResponse, CertId, CertStatus, OcspGeneralizedTime, OcspRequest, OcspResponse,
    OcspResponseStatus, Request, ResponderId, SingleResponse, TbsRequest,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Finding, RevocationError, check_dates, reason, signature};

/// Of a CertID no security depends on the hash, and many responders know no other.
const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");

fn unreadable(error: impl ToString) -> RevocationError {
    RevocationError::Unreadable {
        what: "OCSP response",
        cause: error.to_string(),
    }
}

/// A question about one certificate.
pub(super) struct Question {
    id: CertId,
    serial: String,
}

impl Question {
    /// `serial` is hexadecimal; `issuer` a certificate in DER.
    pub(super) fn new(serial: &str, issuer: &[u8]) -> Result<Question, RevocationError> {
        let (_, issuer) = X509Certificate::from_der(issuer).map_err(unreadable)?;
        let hashed = |bytes: &[u8]| OctetString::new(sha::sha1(bytes)).map_err(unreadable);
        let bytes = unhex(serial).ok_or_else(|| unreadable("the serial number is not hex"))?;
        let id = CertId {
            hash_algorithm: AlgorithmIdentifierOwned {
                oid: SHA1,
                parameters: Some(Null.into()),
            },
            issuer_name_hash: hashed(issuer.subject().as_raw())?,
            issuer_key_hash: hashed(&issuer.public_key().subject_public_key.data)?,
            serial_number: SerialNumber::new(&bytes).map_err(unreadable)?,
        };
        Ok(Question {
            id,
            serial: serial.to_owned(),
        })
    }

    /// The body of a POST (RFC 6960 appendix A.1). Without a nonce: the dates tell what is old, and
    /// answers that were made beforehand have none.
    pub(super) fn to_der(&self) -> Result<Vec<u8>, RevocationError> {
        let request = OcspRequest {
            tbs_request: TbsRequest {
                request_list: vec![Request {
                    req_cert: self.id.clone(),
                    single_request_extensions: None,
                }],
                ..TbsRequest::default()
            },
            optional_signature: None,
        };
        request.to_der().map_err(unreadable)
    }

    /// What the responder says.
    pub(super) fn read(
        &self,
        der: &[u8],
        issuer: &[u8],
        now: OffsetDateTime,
    ) -> Result<Finding, RevocationError> {
        let response = OcspResponse::from_der(der).map_err(unreadable)?;
        if response.response_status != OcspResponseStatus::Successful {
            let status = format!("{:?}", response.response_status);
            return Err(RevocationError::Responder(status));
        }
        let bytes = response
            .response_bytes
            .ok_or_else(|| unreadable("it is empty"))?;
        let basic = BasicOcspResponse::from_der(bytes.response.as_bytes()).map_err(unreadable)?;
        verify(&basic, issuer, now)?;
        let mut answers = basic.tbs_response_data.responses.iter();
        let answer = answers.find(|answer| self.is_about(answer));
        let answer = answer.ok_or_else(|| {
            RevocationError::OtherScope("it is about another certificate".to_owned())
        })?;
        let next_update = answer.next_update.map(time_of);
        check_dates(now, time_of(answer.this_update), next_update)?;
        let revoked = match answer.cert_status {
            CertStatus::Good(_) => None,
            CertStatus::Unknown(_) => {
                return Err(RevocationError::Responder(
                    "that it does not know it".to_owned(),
                ));
            }
            CertStatus::Revoked(info) => reason(info.revocation_reason.map_or(0, |it| it as u8)),
        };
        Ok(Finding {
            revoked: revoked
                .map(|it| (self.serial.clone(), it))
                .into_iter()
                .collect(),
            next_update,
        })
    }

    /// Some leave out the parameters of the algorithm, which are nothing.
    fn is_about(&self, answer: &SingleResponse) -> bool {
        let (ours, theirs) = (&self.id, &answer.cert_id);
        ours.hash_algorithm.oid == theirs.hash_algorithm.oid
            && ours.issuer_name_hash == theirs.issuer_name_hash
            && ours.issuer_key_hash == theirs.issuer_key_hash
            && ours.serial_number == theirs.serial_number
    }
}

/// RFC 6960 section 4.2.2.2: the issuer itself, or whom it gave a certificate for this.
fn verify(
    basic: &BasicOcspResponse,
    issuer: &[u8],
    now: OffsetDateTime,
) -> Result<(), RevocationError> {
    let data = &basic.tbs_response_data;
    let message = data.to_der().map_err(unreadable)?;
    let algorithm = basic.signature_algorithm.oid.to_string();
    let signature = basic.signature.raw_bytes();
    let by = |certificate: &[u8]| {
        let key = signature::key_of(certificate)?;
        signature::verify(&key, &algorithm, signature, &message)
    };
    if is_responder(&data.responder_id, issuer) {
        return by(issuer);
    }
    let certificates = basic.certs.iter().flatten();
    let mut ders = certificates.filter_map(|certificate| certificate.to_der().ok());
    let delegate = ders.find(|der| is_responder(&data.responder_id, der));
    let delegate = delegate.ok_or(RevocationError::Signature)?;
    check_delegate(&delegate, issuer, now)?;
    by(&delegate)
}

fn is_responder(id: &ResponderId, certificate: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    match id {
        ResponderId::ByName(name) => name
            .to_der()
            .is_ok_and(|der| der == certificate.subject().as_raw()),
        ResponderId::ByKey(hash) => {
            hash.as_bytes() == sha::sha1(&certificate.public_key().subject_public_key.data)
        }
    }
}

fn check_delegate(
    delegate: &[u8],
    issuer: &[u8],
    now: OffsetDateTime,
) -> Result<(), RevocationError> {
    let refused =
        |cause: &str| RevocationError::OtherScope(format!("the responder's certificate {cause}"));
    let key = signature::key_of(issuer)?;
    let signed = X509::from_der(delegate).and_then(|certificate| certificate.verify(&key));
    if !signed.unwrap_or(false) {
        return Err(refused("is not by the same issuer"));
    }
    let (_, certificate) = X509Certificate::from_der(delegate).map_err(unreadable)?;
    match certificate.extended_key_usage() {
        Ok(Some(usage)) if usage.value.ocsp_signing => {}
        _ => return Err(refused("is not for OCSP")),
    }
    let validity = certificate.validity();
    let (from, to) = (
        validity.not_before.to_datetime(),
        validity.not_after.to_datetime(),
    );
    match from <= now && now <= to {
        true => Ok(()),
        false => Err(refused("is not valid now")),
    }
}

fn time_of(at: OcspGeneralizedTime) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + at.0.to_unix_duration()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.map(byte).collect()
}

#[cfg(test)]
#[path = "ocsp_tests.rs"]
pub(super) mod tests;
