//! What one file holds: certificates and private keys, out of its bytes. Knows formats, not files.

use boring::pkey::{PKey, Private};
use boring::sha::sha256;
use rustls_pki_types::pem::{self, SectionKind};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certified_key::names_of;

/// The certificates and keys of one file, in the order in which they stand there.
#[derive(Default)]
pub struct Material {
    /// DER.
    pub certificates: Vec<Vec<u8>>,
    pub keys: Vec<PrivateKey>,
}

/// A private key and the fingerprint by which its certificate is found.
pub struct PrivateKey {
    pub key: PKey<Private>,
    pub public_key: PublicKeyHash,
}

/// SHA-256 of a SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7).
pub type PublicKeyHash = [u8; 32];

/// Why a file's bytes are not certificates and keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaterialError {
    #[error("is empty")]
    Empty,
    #[error(
        "holds no PEM block (expected -----BEGIN CERTIFICATE----- or -----BEGIN PRIVATE KEY-----)"
    )]
    NoPem,
    #[error("is cut off: its last PEM block has no end (still being written, or a full disk?)")]
    Truncated,
    #[error("has a damaged PEM block: {0}")]
    Damaged(String),
    #[error("certificate {position} in it cannot be parsed: {cause}")]
    Certificate { position: usize, cause: String },
    #[error("has a private key that cannot be read: {0}")]
    Key(String),
    #[error(
        "has an encrypted private key, which needs a password; store it decrypted, mode 0600 (openssl pkey -in FILE -out FILE)"
    )]
    EncryptedKey,
}

impl Material {
    /// Parses PEM: certificates and PKCS#8, PKCS#1 or SEC1 keys, in any order, with any text
    /// between the blocks. Blocks of other kinds are passed over.
    pub fn parse(bytes: &[u8]) -> Result<Material, MaterialError> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err(MaterialError::Empty);
        }
        if !has_marker(bytes, b"-----BEGIN") {
            return Err(MaterialError::NoPem);
        }
        if has_marker(bytes, b"ENCRYPTED PRIVATE KEY-----") || has_marker(bytes, b"4,ENCRYPTED") {
            return Err(MaterialError::EncryptedKey);
        }
        let mut material = Material::default();
        let mut rest = bytes;
        loop {
            match pem::from_buf(&mut rest) {
                Ok(None) => break,
                Ok(Some((kind, der))) => material.add(kind, der)?,
                Err(pem::Error::MissingSectionEnd { .. }) => return Err(MaterialError::Truncated),
                Err(error) => return Err(MaterialError::Damaged(error.to_string())),
            }
        }
        if material.certificates.is_empty() && material.keys.is_empty() {
            // A marker without a block: either it is of a kind we have no use for, or it broke
            // off inside its own first line.
            let whole = has_marker(bytes, b"-----END");
            return Err(if whole {
                MaterialError::NoPem
            } else {
                MaterialError::Truncated
            });
        }
        Ok(material)
    }

    fn add(&mut self, kind: SectionKind, der: Vec<u8>) -> Result<(), MaterialError> {
        match kind {
            SectionKind::Certificate => {
                let position = self.certificates.len() + 1;
                X509Certificate::from_der(&der).map_err(|error| MaterialError::Certificate {
                    position,
                    cause: error.to_string(),
                })?;
                self.certificates.push(der);
            }
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                self.keys.push(PrivateKey::from_der(&der)?);
            }
            _ => {}
        }
        Ok(())
    }

    /// The certificate that the others in the file vouch for: the first that is not a CA's; else
    /// the first of all, if it names a host, because a self-signed certificate is often marked as
    /// a CA's.
    pub fn leaf(&self) -> Option<Leaf> {
        let parsed: Vec<X509Certificate<'_>> = self
            .certificates
            .iter()
            .filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1))
            .collect();
        let leaf = |certificate: &X509Certificate<'_>, is_ca| Leaf {
            public_key: sha256(certificate.public_key().raw),
            is_ca,
        };
        match parsed.iter().find(|certificate| !certificate.is_ca()) {
            Some(certificate) => Some(leaf(certificate, false)),
            None => parsed
                .first()
                .filter(|certificate| !names_of(certificate).is_empty())
                .map(|certificate| leaf(certificate, true)),
        }
    }
}

/// A certificate that a private key may belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub public_key: PublicKeyHash,
    /// It is marked as a CA's: a leaf only if its key is there, too.
    pub is_ca: bool,
}

impl PrivateKey {
    fn from_der(der: &[u8]) -> Result<PrivateKey, MaterialError> {
        let key = PKey::private_key_from_der(der)
            .map_err(|error| MaterialError::Key(first_reason(&error)))?;
        let spki = key
            .public_key_to_der()
            .map_err(|error| MaterialError::Key(first_reason(&error)))?;
        Ok(PrivateKey {
            key,
            public_key: sha256(&spki),
        })
    }
}

/// The first line of BoringSSL's error queue in words, without its file names.
pub(crate) fn first_reason(error: &boring::error::ErrorStack) -> String {
    error.errors().first().and_then(|e| e.reason()).map_or_else(
        || "unknown error".to_owned(),
        |r| r.to_lowercase().replace('_', " "),
    )
}

fn has_marker(bytes: &[u8], marker: &[u8]) -> bool {
    bytes.windows(marker.len()).any(|window| window == marker)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn blocks_in_any_order_with_text_between() {
        let (certificate, key) = pair();
        let text = format!("# my key\r\n{key}\nsubject=/CN=a.test\n{certificate}\n\n");
        let material = Material::parse(text.as_bytes()).unwrap();
        assert_eq!(material.certificates.len(), 1);
        assert_eq!(
            material.leaf().unwrap().public_key,
            material.keys[0].public_key
        );
    }

    #[test]
    fn every_truncation_is_an_error_or_whole_blocks() {
        let (certificate, key) = pair();
        let text = format!("{certificate}{key}");
        for end in 0..text.len() {
            if let Ok(material) = Material::parse(&text.as_bytes()[..end]) {
                assert!(end >= certificate.len() - 2, "cut at {end}");
                assert_eq!(material.certificates.len(), 1);
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let (certificate, _) = pair();
        let cut = &certificate.as_bytes()[..certificate.len() / 2];
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (bytes, wanted) in [
            (&b" \n"[..], "is empty"),
            (b"hello", "holds no PEM block"),
            (cut, "is cut off"),
            (garbage.as_bytes(), "certificate 1 in it cannot be parsed"),
            (
                b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "private key that cannot be read",
            ),
            (
                b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
                "needs a password",
            ),
        ] {
            let error = Material::parse(bytes).err().unwrap().to_string();
            assert!(error.contains(wanted), "{error:?} should contain {wanted:?}");
        }
    }
}
