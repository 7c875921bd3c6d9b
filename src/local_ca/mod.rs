//! The internal CA: for names that no public CA issues for. It makes certificates and hands them
//! to the caller, who stores them like any other; it never serves one, and what serves never
//! touches a trust store: [`trust_store`] is a command's.
//!
//! The root is **not** name-constrained, the intermediate is. People trust the root by hand, once;
//! constraints in it would have to be widened, and the root trusted again on every machine,
//! whenever a site gets a name outside them. The intermediate is ours to replace at any time, its
//! key is the one in daily use, and every verifier reads its constraints too.

mod constraints;
pub mod trust_store;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::name::Name;
use crate::config::KeyType;
use crate::store::leaf::{Leaf, chain_der, chain_pem};
use crate::store::{self, SECRET_FILE, StateDir, StoreError, atomic, private_key};

use constraints::Permitted;

/// Certificates start this long before they are made, for clients whose clock is behind.
const CLOCK_SKEW: Duration = Duration::HOUR;
const ROOT_VALIDITY: Duration = Duration::days(3652);
const INTERMEDIATE_VALIDITY: Duration = Duration::days(365);
const LEAF_VALIDITY: Duration = Duration::days(7);
/// The intermediate is replaced when this part of its life is left.
const INTERMEDIATE_RENEWAL_DIVISOR: i32 = 3;
/// The root is public, by name and by purpose.
const PUBLIC_FILE: u32 = 0o644;
/// Bits of randomness in a serial number; 64 are what public CAs must have at least.
const SERIAL_BYTES: usize = 16;

/// Why the internal CA cannot issue.
#[derive(Debug, thiserror::Error)]
pub enum LocalCaError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot make a certificate of the internal CA: {0}")]
    Make(#[from] rcgen::Error),
    #[error(
        "the root of the internal CA cannot be used: {} {cause}; restore it from a backup, or remove {} \
         to start a new one, which clients then have to trust",
        path.display(), path.with_file_name("root.*").display()
    )]
    Root { path: PathBuf, cause: String },
}

/// The internal CA of a state directory.
#[derive(Clone, Debug)]
pub struct LocalCa {
    dir: PathBuf,
    /// Held while root and intermediate are read or made: both are made once.
    authorities: Arc<Mutex<()>>,
}

/// A certificate with its key, not yet stored.
pub struct IssuedLeaf {
    /// Leaf and intermediate.
    pub fullchain_pem: String,
    /// Secret.
    pub private_key_pem: String,
    pub leaf: Leaf,
}

/// A CA certificate and its key.
struct Authority {
    der: Vec<u8>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    permitted: Permitted,
    key: KeyPair,
}

impl LocalCa {
    pub fn new(state: &StateDir) -> LocalCa {
        LocalCa {
            dir: state.local_ca_dir(),
            authorities: Arc::default(),
        }
    }

    /// Where the root is, or will be: the file to trust.
    pub fn root_path(&self) -> PathBuf {
        self.dir.join("root.pem")
    }

    /// Issues a certificate for `names`. `all_names`: every name that the configuration gives to
    /// the internal CA, so that a new intermediate is made for all of them at once. Blocks on the
    /// disk and on key generation.
    pub fn issue(
        &self,
        names: &[Name],
        key_type: KeyType,
        all_names: &[Name],
        now: OffsetDateTime,
    ) -> Result<IssuedLeaf, LocalCaError> {
        let intermediate = {
            // What is guarded is on disk, where a panic leaves what a crash would.
            let _guard = self
                .authorities
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            let root = self.root(now)?;
            self.intermediate(&root, names, all_names, now)?
        };
        let key = private_key::generate(key_type)?;
        let params = leaf_params(names, now, intermediate.not_after)?;
        let issuer = intermediate.issuer()?;
        let certificate = params.signed_by(&key, &issuer)?;
        let chain = [certificate.der().to_vec(), intermediate.der.clone()];
        let leaf = Leaf::parse(&chain[0])
            .map_err(|cause| StoreError::broken(Path::new("the new certificate"), cause))?;
        Ok(IssuedLeaf {
            fullchain_pem: chain_pem(&chain),
            private_key_pem: key.serialize_pem(),
            leaf,
        })
    }

    /// The root, made where there is none. One that is broken or has expired is never replaced
    /// silently: people trust it.
    fn root(&self, now: OffsetDateTime) -> Result<Authority, LocalCaError> {
        let path = self.root_path();
        let refuse = |cause: String| LocalCaError::Root {
            path: path.clone(),
            cause,
        };
        if !path.exists() {
            return self.make_root(now);
        }
        let root = load(&path, &self.dir.join("root.key"))?.map_err(refuse)?;
        if root.not_after <= now {
            return Err(refuse("has expired".to_owned()));
        }
        Ok(root)
    }

    fn make_root(&self, now: OffsetDateTime) -> Result<Authority, LocalCaError> {
        let id: [u8; 3] = rand::random();
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("Perennial Local Authority {} {id}", now.year());
        let key = KeyPair::generate()?;
        let params = ca_params(
            &name,
            BasicConstraints::Constrained(1),
            now,
            now + ROOT_VALIDITY,
        );
        let certificate = params.self_signed(&key)?;
        tracing::info!(root = %self.root_path().display(), name, "made the root of the internal CA");
        self.keep("root", certificate.der(), key)
    }

    /// The intermediate, made anew where there is none, where it is unusable, has little life
    /// left, was signed by another root, or does not permit `names`.
    fn intermediate(
        &self,
        root: &Authority,
        names: &[Name],
        all_names: &[Name],
        now: OffsetDateTime,
    ) -> Result<Authority, LocalCaError> {
        let (path, key) = (
            self.dir.join("intermediate.pem"),
            self.dir.join("intermediate.key"),
        );
        if path.exists() {
            match load(&path, &key)? {
                Ok(found) if found.serves(root, names, now) => return Ok(found),
                Ok(_) => {}
                Err(cause) => {
                    tracing::warn!(path = %path.display(), cause, "a new intermediate is made");
                }
            }
        }
        let mut wanted = all_names.to_vec();
        wanted.extend_from_slice(names);
        self.make_intermediate(root, &constraints::permitted(&wanted), now)
    }

    fn make_intermediate(
        &self,
        root: &Authority,
        permitted: &Permitted,
        now: OffsetDateTime,
    ) -> Result<Authority, LocalCaError> {
        let not_after = (now + INTERMEDIATE_VALIDITY).min(root.not_after);
        let mut params = ca_params(
            "Perennial Local Intermediate",
            BasicConstraints::Constrained(0),
            now,
            not_after,
        );
        params.use_authority_key_identifier_extension = true;
        params.name_constraints = permitted.as_ref().map(|subtrees| NameConstraints {
            permitted_subtrees: subtrees
                .iter()
                .map(|subtree| subtree.to_general())
                .collect(),
            excluded_subtrees: Vec::new(),
        });
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &root.issuer()?)?;
        self.keep("intermediate", certificate.der(), key)
    }

    /// Writes key and certificate, the certificate last: a certificate on disk has its key, and a
    /// crash between the two leaves a pair that does not match, which is noticed.
    fn keep(&self, name: &str, der: &[u8], key: KeyPair) -> Result<Authority, LocalCaError> {
        store::make_directory(&self.dir)?;
        let path = self.dir.join(format!("{name}.pem"));
        let secret = key.serialize_pem();
        let key_path = self.dir.join(format!("{name}.key"));
        atomic::write_file(&key_path, secret.as_bytes(), SECRET_FILE)?;
        atomic::write_file(&path, chain_pem(&[der]).as_bytes(), PUBLIC_FILE)?;
        Authority::new(der, key).map_err(|cause| StoreError::broken(&path, cause).into())
    }
}

impl Authority {
    fn new(der: &[u8], key: KeyPair) -> Result<Authority, String> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| format!("is no certificate ({error})"))?;
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err("does not belong to the private key beside it".to_owned());
        }
        Ok(Authority {
            der: der.to_vec(),
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
            permitted: constraints::of_certificate(&certificate)?,
            key,
        })
    }

    fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, rcgen::Error> {
        Issuer::from_ca_cert_der(&self.der.as_slice().into(), &self.key)
    }

    /// Whether this intermediate can sign for `names` now.
    fn serves(&self, root: &Authority, names: &[Name], now: OffsetDateTime) -> bool {
        let life = self.not_after - self.not_before;
        let replace_at = self.not_after - life / INTERMEDIATE_RENEWAL_DIVISOR;
        // Where the root ends the intermediate's life, a new one would be no longer.
        let young = now < replace_at || (self.not_after == root.not_after && now < self.not_after);
        young && constraints::permits(&self.permitted, names) && self.is_signed_by(root)
    }

    fn is_signed_by(&self, root: &Authority) -> bool {
        let verify = || -> Result<bool, boring::error::ErrorStack> {
            let certificate = boring::x509::X509::from_der(&self.der)?;
            let root = boring::x509::X509::from_der(&root.der)?;
            let public_key = root.public_key()?;
            certificate.verify(&public_key)
        };
        verify().unwrap_or(false)
    }
}

/// Reads a CA certificate and its key. The inner error says, as the rest of a sentence about the
/// certificate, why they are unusable.
fn load(path: &Path, key_path: &Path) -> Result<Result<Authority, String>, StoreError> {
    let read = |path: &Path| match fs::read_to_string(path) {
        Ok(text) => Ok(Ok(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Err(format!("needs {}, which is missing", path.display())))
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Ok(Err("is not PEM".to_owned()))
        }
        Err(error) => Err(StoreError::io("read", path, error)),
    };
    let (pem, key) = match (read(path)?, read(key_path)?) {
        (Ok(pem), Ok(key)) => (pem, key),
        (Err(cause), _) | (_, Err(cause)) => return Ok(Err(cause)),
    };
    Ok(parse(&pem, &key))
}

fn parse(pem: &str, key: &str) -> Result<Authority, String> {
    let chain = chain_der(pem.as_bytes())?;
    let der = chain.first().ok_or("has no certificate in it")?;
    let key = KeyPair::from_pem(key).map_err(|error| format!("has an unusable key ({error})"))?;
    Authority::new(der, key)
}

fn ca_params(
    name: &str,
    constraints: BasicConstraints,
    now: OffsetDateTime,
    not_after: OffsetDateTime,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial_number());
    params.not_before = now - CLOCK_SKEW;
    params.not_after = not_after;
    params
}

/// The names stand in the subject alternative names alone: the subject stays empty, since
/// verifiers that read a common name as a host name would hold it against the constraints too.
fn leaf_params(
    names: &[Name],
    now: OffsetDateTime,
    issuer_not_after: OffsetDateTime,
) -> Result<CertificateParams, rcgen::Error> {
    let texts: Vec<String> = names.iter().map(Name::to_string).collect();
    let mut params = CertificateParams::new(texts)?;
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial_number());
    params.not_before = now - CLOCK_SKEW;
    params.not_after = (now + LEAF_VALIDITY).min(issuer_not_after);
    Ok(params)
}

fn serial_number() -> SerialNumber {
    let mut bytes: [u8; SERIAL_BYTES] = rand::random();
    // Positive and of full length whatever the rest is.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

#[cfg(test)]
mod tests;
