//! A certificate chain and its private key, verified to belong together. A [`CertifiedKey`] that
//! exists can be served.

use std::fmt;
use std::sync::Arc;

use boring::sha::sha256;
use boring::ssl::SslCredential;
use time::OffsetDateTime;

use super::credential::{self, CredentialError};
use super::material::{Material, PrivateKey, first_reason};
use super::name::Name;
use super::x509::{Certificate, hex};

/// A chain whose leaf matches its key, ready for handshakes. Immutable.
pub struct CertifiedKey {
    credential: SslCredential,
    names: Box<[Name]>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    serial: Box<str>,
    fingerprint: Fingerprint,
    issuer: Box<str>,
    algorithm: KeyAlgorithm,
    chain_length: u8,
    /// The file had the chain in another order.
    reordered: bool,
    self_signed: bool,
}

/// SHA-256 over the DER of a leaf certificate. Displayed as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// What kind of signature the key makes, as far as clients differ in what they accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyAlgorithm {
    Ecdsa,
    Rsa,
    Ed25519,
}

/// Why certificates and keys do not make a [`CertifiedKey`].
#[derive(Debug, thiserror::Error)]
pub enum CertifiedKeyError {
    #[error("holds no certificate")]
    NoCertificate,
    #[error("holds no private key")]
    NoKey,
    #[error("no private key in it matches the certificate for {names}")]
    KeyMismatch { names: String },
    #[error(
        "the certificate has neither a subject alternative name nor a common name that is a host name"
    )]
    NoNames,
    #[error("the certificate's validity is not a point in time")]
    Validity,
    #[error("the TLS library refuses it: {}", reason(.0))]
    Credential(#[source] CredentialError),
}

fn reason(error: &CredentialError) -> String {
    match error {
        CredentialError::Chain(stack) | CredentialError::KeyMismatch(stack) => first_reason(stack),
        other => other.to_string(),
    }
}

impl CertifiedKey {
    /// Finds, among the certificates and keys of one or two files, the leaf and the key that fit
    /// each other, orders the rest of the chain behind the leaf, and leaves a root out.
    pub fn assemble(
        certificates: &[Arc<Certificate>],
        keys: &[PrivateKey],
    ) -> Result<CertifiedKey, CertifiedKeyError> {
        let Some(first) = certificates.first() else {
            return Err(CertifiedKeyError::NoCertificate);
        };
        if keys.is_empty() {
            return Err(CertifiedKeyError::NoKey);
        }
        let Some((leaf, key)) = matching(certificates, keys) else {
            let names = join(&first.names);
            return Err(CertifiedKeyError::KeyMismatch { names });
        };
        let order = chain_order(certificates, leaf);
        let chain = || order.iter().map(|&i| &*certificates[i]);
        for certificate in chain() {
            certificate.accepted_by_clients().map_err(|error| {
                CertifiedKeyError::Credential(CredentialError::Chain(error.clone()))
            })?;
        }
        let ders: Vec<&[u8]> = chain().map(Certificate::der).collect();
        let credential =
            credential::x509(&ders, &key.key).map_err(CertifiedKeyError::Credential)?;
        let reordered = order.windows(2).any(|pair| pair[0] > pair[1]) || leaf != 0;
        let certified = CertifiedKey::describe(&certificates[leaf], credential)?;
        Ok(CertifiedKey {
            chain_length: u8::try_from(order.len()).unwrap_or(u8::MAX),
            reordered,
            ..certified
        })
    }

    /// [`assemble`](Self::assemble) for a certificate file and a key file (or one combined file,
    /// given twice).
    pub fn from_materials(
        certificate: &Material,
        private_key: &Material,
    ) -> Result<CertifiedKey, CertifiedKeyError> {
        CertifiedKey::assemble(&certificate.certificates, &private_key.keys)
    }

    fn describe(
        leaf: &Certificate,
        credential: SslCredential,
    ) -> Result<CertifiedKey, CertifiedKeyError> {
        if leaf.names.is_empty() {
            return Err(CertifiedKeyError::NoNames);
        }
        let (not_before, not_after) = leaf.validity.ok_or(CertifiedKeyError::Validity)?;
        Ok(CertifiedKey {
            credential,
            names: leaf.names.clone(),
            not_before,
            not_after,
            serial: leaf.serial.clone(),
            fingerprint: Fingerprint(sha256(leaf.der())),
            issuer: leaf.issuer_name.clone(),
            algorithm: leaf.algorithm,
            chain_length: 1,
            reordered: false,
            self_signed: leaf.is_self_issued(),
        })
    }

    pub fn credential(&self) -> &SslCredential {
        &self.credential
    }

    /// The subject alternative names, or the common name where there are none. Never empty.
    pub fn names(&self) -> &[Name] {
        &self.names
    }

    pub fn covers(&self, host: &Name) -> bool {
        self.names.iter().any(|name| name.covers(host))
    }

    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    pub fn is_valid_at(&self, now: OffsetDateTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// The serial number, lower-case hex of its DER content.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The issuer's distinguished name.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    pub fn algorithm(&self) -> KeyAlgorithm {
        self.algorithm
    }

    /// What is odd about the chain, though it is served: each a sentence for the log.
    pub fn chain_notes(&self) -> impl Iterator<Item = String> + '_ {
        let reordered = self.reordered.then(|| {
            "the file has the chain in another order than TLS wants; it is served sorted, leaf first"
                .to_owned()
        });
        let alone = (self.chain_length == 1 && !self.self_signed).then(|| {
            format!(
                "the file has no intermediate certificate: clients that do not have {} themselves \
                 will refuse the leaf; use the CA's full chain",
                self.issuer
            )
        });
        reordered.into_iter().chain(alone)
    }

    /// Certificates in the chain that is sent, the leaf included.
    pub fn chain_length(&self) -> usize {
        usize::from(self.chain_length)
    }
}

impl fmt::Debug for CertifiedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertifiedKey")
            .field("names", &self.names)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The first certificate, in file order, to which one of the keys belongs.
fn matching<'k>(
    certificates: &[Arc<Certificate>],
    keys: &'k [PrivateKey],
) -> Option<(usize, &'k PrivateKey)> {
    certificates
        .iter()
        .enumerate()
        .find_map(|(i, certificate)| {
            let fits = |key: &&PrivateKey| key.public_key == certificate.public_key;
            Some((i, keys.iter().find(fits)?))
        })
}

/// The leaf, then each certificate's issuer, as far as they are there. A self-signed root is left
/// out (clients have it or will not believe it), except when it is the leaf itself.
fn chain_order(certificates: &[Arc<Certificate>], leaf: usize) -> Vec<usize> {
    let mut order = vec![leaf];
    let mut current = leaf;
    loop {
        let next = certificates.iter().enumerate().position(|(i, candidate)| {
            !order.contains(&i)
                && certificates[current].is_issued_by(candidate)
                && !candidate.is_self_issued()
        });
        match next {
            Some(i) => {
                order.push(i);
                current = i;
            }
            None => return order,
        }
    }
}

fn join(names: &[Name]) -> String {
    let texts: Vec<String> = names.iter().map(Name::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::testing::Request;
    use crate::clock;

    #[test]
    fn a_damaged_certificate_that_clients_would_not_parse_is_refused() {
        const UTF8_STRING: u8 = 0x0c;
        const BMP_STRING: u8 = 0x1e;
        const NAME: &[u8] = b"rcgen self signed cert";
        let pair = Request::new(&["a.test"], clock::now()).issue();
        let certificate = Material::parse(pair.certificate.as_bytes(), None).unwrap();
        let key = Material::parse(pair.key.as_bytes(), None).unwrap();
        assert!(CertifiedKey::from_materials(&certificate, &key).is_ok());
        let mut der = certificate.certificates[0].der().to_vec();
        let at = der
            .windows(NAME.len())
            .position(|text| text == NAME)
            .unwrap();
        // Not every pair of these bytes is a character.
        der[at..at + 2].copy_from_slice(b"\xd8\x00");
        assert_eq!(std::mem::replace(&mut der[at - 2], BMP_STRING), UTF8_STRING);
        let damaged = Material::parse(&der, None).unwrap();
        let error = CertifiedKey::from_materials(&damaged, &key).unwrap_err();
        assert!(error.to_string().contains("refuses"), "{error}");
    }
}
