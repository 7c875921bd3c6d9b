//! Signatures of an issuer's key. It knows no certificate formats.

use boring::hash::MessageDigest;
use boring::pkey::{PKey, Public};
use boring::sign::Verifier;
use boring::x509::X509;

use super::RevocationError;

/// The key of a certificate.
pub(super) fn key_of(certificate_der: &[u8]) -> Result<PKey<Public>, RevocationError> {
    let unreadable = |error: boring::error::ErrorStack| RevocationError::Unreadable {
        what: "certificate of the issuer",
        cause: error.to_string(),
    };
    let certificate = X509::from_der(certificate_der).map_err(unreadable)?;
    certificate.public_key().map_err(unreadable)
}

/// Whether `signature` over `message` is by this key. SHA-1 is not believed.
pub(super) fn verify(
    key: &PKey<Public>,
    algorithm: &str,
    signature: &[u8],
    message: &[u8],
) -> Result<(), RevocationError> {
    let digest = match algorithm {
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" => Some(MessageDigest::sha256()),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(MessageDigest::sha384()),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(MessageDigest::sha512()),
        // Ed25519 (RFC 8410) has its own.
        "1.3.101.112" => None,
        other => return Err(RevocationError::Algorithm(other.to_owned())),
    };
    let verifier = match digest {
        Some(digest) => Verifier::new(digest, key),
        None => Verifier::new_without_digest(key),
    };
    let verified = verifier.and_then(|mut it| it.verify_oneshot(signature, message));
    match verified {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(RevocationError::Signature),
    }
}
