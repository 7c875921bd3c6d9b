//! Certificates for the tests of this module.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SignatureAlgorithm,
};
use time::{Duration, OffsetDateTime};

use super::certified_key::CertifiedKey;
use super::material::Material;

/// A certificate as it is on disk.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// What to issue.
pub struct Request<'a> {
    pub names: &'a [&'a str],
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub algorithm: &'static SignatureAlgorithm,
    /// Whether an intermediate signs it, and goes into the chain.
    pub intermediate: bool,
}

impl<'a> Request<'a> {
    /// Valid from an hour before `now` for 90 days, P-256, self-signed.
    pub fn new(names: &'a [&'a str], now: OffsetDateTime) -> Request<'a> {
        Request {
            names,
            not_before: now - Duration::HOUR,
            not_after: now + Duration::days(90),
            algorithm: &rcgen::PKCS_ECDSA_P256_SHA256,
            intermediate: false,
        }
    }

    pub fn issue(&self) -> Pair {
        let key = KeyPair::generate_for(self.algorithm).unwrap();
        let names: Vec<String> = self.names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = self.not_before;
        params.not_after = self.not_after;
        let certificate = if self.intermediate {
            let issuer = intermediate();
            let leaf = params.signed_by(&key, &issuer).unwrap();
            format!("{}{}", leaf.pem(), issuer.pem())
        } else {
            params.self_signed(&key).unwrap().pem()
        };
        Pair {
            certificate,
            key: key.serialize_pem(),
        }
    }
}

impl Pair {
    pub fn certified_key(&self) -> CertifiedKey {
        CertifiedKey::from_materials(
            &Material::parse(self.certificate.as_bytes(), None).unwrap(),
            &Material::parse(self.key.as_bytes(), None).unwrap(),
        )
        .unwrap()
    }
}

pub(crate) fn intermediate() -> CertifiedIssuer<'static, KeyPair> {
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let root_key = KeyPair::generate().unwrap();
    let root = CertifiedIssuer::self_signed(authority("test root"), root_key).unwrap();
    let key = KeyPair::generate().unwrap();
    CertifiedIssuer::signed_by(authority("test intermediate"), key, &root).unwrap()
}
