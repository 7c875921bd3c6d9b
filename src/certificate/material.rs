//! What one file holds: certificates and private keys, out of its bytes. Knows formats, not files.

use std::sync::Arc;

use boring::error::ErrorStack;
use boring::pkcs12::{Pkcs12, Pkcs12Ref};
use boring::pkey::{Id, PKey, Private};
use boring::sha::sha256;
use memchr::memmem;

use super::pem::{self, Block, PemError};
use super::rounds::{self, MAX_ROUNDS};
use super::x509::Certificate;

/// The certificates and keys of one file, in the order in which they stand there.
#[derive(Default)]
pub struct Material {
    pub certificates: Vec<Arc<Certificate>>,
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
        "holds no PEM block (expected -----BEGIN CERTIFICATE----- or -----BEGIN PRIVATE KEY-----) and is no DER"
    )]
    Foreign,
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("holds a certificate that cannot be read: {0}")]
    Store(String),
    #[error("certificate {position} in it cannot be parsed: {cause}")]
    Certificate { position: usize, cause: String },
    #[error("has a private key that cannot be read: {0}")]
    Key(String),
    #[error(
        "has a {bits}-bit RSA key, which is too weak: TLS needs {MIN_RSA_BITS} bits at least, CAs want 2048"
    )]
    WeakKey { bits: u32 },
    #[error(
        "is encrypted and no password is given: name a password_file, or store the key decrypted, mode 0600 (openssl pkey -in FILE -out FILE)"
    )]
    PasswordWanted,
    #[error("is encrypted, and the password does not open it")]
    WrongPassword,
    #[error(
        "asks for {0} rounds of key derivation, and no more than {MAX_ROUNDS} are done: encrypt it with fewer (openssl pkcs12 -export -iter N, openssl pkcs8 -topk8 -iter N)"
    )]
    TooManyRounds(u64),
}

/// BoringSSL signs with smaller keys no PSS signature of SHA-512, and no client accepts one.
const MIN_RSA_BITS: u32 = 1024;

impl Material {
    /// Parses what is there, whatever its form: PEM with certificates and PKCS#8, PKCS#1 or SEC1
    /// keys in any order, with any text between the blocks and blocks of other kinds passed over;
    /// one DER certificate or key; PKCS#12. The password opens encrypted keys and PKCS#12, where
    /// none is the empty one.
    pub fn parse(bytes: &[u8], password: Option<&Password>) -> Result<Material, MaterialError> {
        // Some editors begin a file with a byte order mark.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err(MaterialError::Empty);
        }
        if memmem::find(bytes, pem::MARKER).is_some() {
            return Material::parse_pem(bytes, password);
        }
        if bytes.starts_with(DER_SEQUENCE) {
            return Material::parse_der(bytes, password);
        }
        Err(MaterialError::Foreign)
    }

    fn parse_pem(bytes: &[u8], password: Option<&Password>) -> Result<Material, MaterialError> {
        let mut material = Material::default();
        for block in pem::blocks(bytes) {
            material.add(&block?, password)?;
        }
        if material.certificates.is_empty() && material.keys.is_empty() {
            // A marker without a block: either it is of a kind we have no use for, or it broke
            // off inside its own first line.
            let whole = memmem::find(bytes, b"-----END").is_some();
            return Err(if whole {
                MaterialError::Foreign
            } else {
                PemError::Truncated.into()
            });
        }
        Ok(material)
    }

    fn parse_der(bytes: &[u8], password: Option<&Password>) -> Result<Material, MaterialError> {
        let mut material = Material::default();
        let certificate = Certificate::parse(bytes.to_vec());
        if let Some(certificate) = certificate.ok().filter(|certificate| certificate.is_alone) {
            material.certificates.push(certificate);
        } else if let Ok(key) = private_key(bytes) {
            material.keys.push(PrivateKey::new(key)?);
        } else if rounds::content_of(bytes).starts_with(PKCS12_VERSION) {
            within_rounds(bytes)?;
            let store = Pkcs12::from_der(bytes).map_err(|_| MaterialError::Foreign)?;
            material.add_pkcs12(&store, password)?;
        } else if is_encrypted_key(bytes) {
            material.keys.push(PrivateKey::decrypt(bytes, password)?);
        } else {
            return Err(MaterialError::Foreign);
        }
        Ok(material)
    }

    fn add_pkcs12(
        &mut self,
        store: &Pkcs12Ref,
        password: Option<&Password>,
    ) -> Result<(), MaterialError> {
        let text = password.map_or("", Password::as_str);
        let parsed = store.parse2(text).map_err(|error| match password {
            _ if first_reason(&error) != "incorrect password" => MaterialError::Foreign,
            Some(_) => MaterialError::WrongPassword,
            None => MaterialError::PasswordWanted,
        })?;
        let chain = parsed
            .ca
            .iter()
            .flatten()
            .map(|certificate| certificate.to_der());
        let leaf = parsed.cert.iter().map(|certificate| certificate.to_der());
        for der in leaf.chain(chain) {
            let der = der.map_err(|error| MaterialError::Store(first_reason(&error)))?;
            self.add_certificate(der)?;
        }
        if let Some(key) = parsed.pkey {
            self.keys.push(PrivateKey::new(key)?);
        }
        Ok(())
    }

    fn add(&mut self, block: &Block<'_>, password: Option<&Password>) -> Result<(), MaterialError> {
        match block.label {
            b"CERTIFICATE" => self.add_certificate(block.decode()?)?,
            b"PRIVATE KEY" | b"RSA PRIVATE KEY" | b"EC PRIVATE KEY" => {
                self.keys.push(match block.is_encrypted() {
                    true => PrivateKey::decrypt_pem(block.text, password)?,
                    false => PrivateKey::from_der(&block.decode_secret()?)?,
                });
            }
            b"ENCRYPTED PRIVATE KEY" => {
                let key = PrivateKey::decrypt(&block.decode()?, password)?;
                self.keys.push(key);
            }
            _ => {}
        }
        Ok(())
    }

    fn add_certificate(&mut self, der: Vec<u8>) -> Result<(), MaterialError> {
        let position = self.certificates.len() + 1;
        let certificate = Certificate::parse(der)
            .map_err(|cause| MaterialError::Certificate { position, cause })?;
        self.certificates.push(certificate);
        Ok(())
    }

    /// The certificate that the others in the file vouch for: the first that is not a CA's; else
    /// the first of all, if it names a host, because a self-signed certificate is often marked as
    /// a CA's.
    pub fn leaf(&self) -> Option<Leaf> {
        let leaf = |certificate: &Arc<Certificate>| Leaf {
            public_key: certificate.public_key,
            is_ca: certificate.is_ca,
        };
        let own = self.certificates.iter().find(|one| !one.is_ca);
        let first = || {
            self.certificates
                .first()
                .filter(|one| !one.names.is_empty())
        };
        own.or_else(first).map(leaf)
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
    fn new(key: PKey<Private>) -> Result<PrivateKey, MaterialError> {
        if key.id() == Id::RSA && key.bits() < MIN_RSA_BITS {
            return Err(MaterialError::WeakKey { bits: key.bits() });
        }
        let spki = key
            .public_key_to_der()
            .map_err(|error| MaterialError::Key(first_reason(&error)))?;
        Ok(PrivateKey {
            key,
            public_key: sha256(&spki),
        })
    }

    fn from_der(der: &[u8]) -> Result<PrivateKey, MaterialError> {
        let key = private_key(der).map_err(|error| MaterialError::Key(first_reason(&error)))?;
        PrivateKey::new(key)
    }

    /// An EncryptedPrivateKeyInfo (RFC 5958 section 3).
    fn decrypt(der: &[u8], password: Option<&Password>) -> Result<PrivateKey, MaterialError> {
        within_rounds(der)?;
        let password = password.ok_or(MaterialError::PasswordWanted)?;
        let key = PKey::private_key_from_pkcs8_passphrase(der, password.as_bytes())
            .map_err(|_| MaterialError::WrongPassword)?;
        PrivateKey::new(key)
    }

    /// The older form, of which the headers of the PEM block are a part (RFC 1421).
    fn decrypt_pem(bytes: &[u8], password: Option<&Password>) -> Result<PrivateKey, MaterialError> {
        let password = password.ok_or(MaterialError::PasswordWanted)?;
        let key = PKey::private_key_from_pem_passphrase(bytes, password.as_bytes())
            .map_err(|_| MaterialError::WrongPassword)?;
        PrivateKey::new(key)
    }
}

/// What opens an encrypted key. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The first line of a password file, without its end.
    pub fn from_file_content(content: &str) -> Password {
        Password(content.lines().next().unwrap_or_default().to_owned())
    }

    fn as_str(&self) -> &str {
        &self.0
    }

    fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(..)")
    }
}

/// How every DER structure that we know begins.
const DER_SEQUENCE: &[u8] = b"\x30";

/// How a PFX of PKCS#12 begins (RFC 7292 section 4).
const PKCS12_VERSION: &[u8] = b"\x02\x01\x03";

/// How PKCS#8 of the second version begins (RFC 5958 section 2), up to the algorithm behind it.
const PKCS8_SECOND_VERSION: &[u8] = b"\x02\x01\x01\x30";

/// PKCS#8, PKCS#1 or SEC1.
fn private_key(der: &[u8]) -> Result<PKey<Private>, ErrorStack> {
    PKey::private_key_from_der(der).or_else(|error| {
        // BoringSSL knows the first version alone, of which it ignores what stands behind the key.
        // There the second one has the public key, and is otherwise the same.
        let content = rounds::content_of(der);
        if !content.starts_with(PKCS8_SECOND_VERSION) {
            return Err(error);
        }
        let mut first_version = der.to_vec();
        first_version[der.len() - content.len() + 2] = 0;
        PKey::private_key_from_der(&first_version)
    })
}

/// Whether this is a key that a password of PKCS#5 or PKCS#12 protects.
fn is_encrypted_key(der: &[u8]) -> bool {
    /// 1.2.840.113549.1, under which both name their schemes.
    const PKCS: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01";
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let content = rounds::content_of(der);
    let algorithm = rounds::content_of(content);
    let scheme = rounds::content_of(algorithm);
    content.starts_with(DER_SEQUENCE)
        && algorithm.first() == Some(&OBJECT_IDENTIFIER)
        && scheme
            .strip_prefix(PKCS)
            .is_some_and(|scheme| matches!(scheme, [5, _] | [12, 1, _]))
}

/// What is served must not wait for a file that takes minutes to open.
fn within_rounds(der: &[u8]) -> Result<(), MaterialError> {
    match rounds::rounds(der) {
        0..=MAX_ROUNDS => Ok(()),
        wanted => Err(MaterialError::TooManyRounds(wanted)),
    }
}

/// The first line of BoringSSL's error queue in words, without its file names.
pub(crate) fn first_reason(error: &ErrorStack) -> String {
    error.errors().first().and_then(|e| e.reason()).map_or_else(
        || "unknown error".to_owned(),
        |r| r.to_lowercase().replace('_', " "),
    )
}

#[cfg(test)]
#[path = "material_tests.rs"]
mod tests;
