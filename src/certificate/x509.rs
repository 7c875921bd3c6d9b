//! One certificate, parsed once: its DER, and everything that is asked of it later. Knows neither
//! files nor keys.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use boring::error::ErrorStack;
use boring::sha::sha256;
use boring::x509::X509;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use super::certified_key::KeyAlgorithm;
use super::material::PublicKeyHash;
use super::name::Name;

/// A certificate that our parser takes. Whether clients would, only
/// [`accepted_by_clients`](Certificate::accepted_by_clients) says.
pub struct Certificate {
    der: Box<[u8]>,
    subject: Box<[u8]>,
    issuer: Box<[u8]>,
    accepted: OnceLock<Result<(), ErrorStack>>,
    /// Whether nothing stands behind it.
    pub is_alone: bool,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub public_key: PublicKeyHash,
    pub algorithm: KeyAlgorithm,
    /// Whether it is marked as a CA's (RFC 5280 section 4.2.1.9).
    pub is_ca: bool,
    /// The subject alternative names, or the common name where there are none.
    pub names: Box<[Name]>,
    /// From when to when; `None` if that is no time.
    pub validity: Option<(OffsetDateTime, OffsetDateTime)>,
    /// Lower-case hex of its DER content.
    pub serial: Box<str>,
    /// The issuer's distinguished name in words.
    pub issuer_name: Box<str>,
}

/// So many CAs' certificates are kept for the files that come next: nearly all chains of a bulk
/// load end with one of a few.
const KEPT: usize = 16;

/// The CAs' certificates that were met last, the latest first.
static MET: Mutex<VecDeque<Arc<Certificate>>> = Mutex::new(VecDeque::new());

impl Certificate {
    /// Parses a DER certificate. One of a CA that was met lately is not parsed again. What stands
    /// behind it is ignored, and is kept with it.
    pub fn parse(der: Vec<u8>) -> Result<Arc<Certificate>, String> {
        if let Some(known) = met(&der) {
            return Ok(known);
        }
        let (rest, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        let certificate = Certificate {
            subject: parsed.subject().as_raw().into(),
            issuer: parsed.issuer().as_raw().into(),
            accepted: OnceLock::new(),
            is_alone: rest.is_empty(),
            public_key: sha256(parsed.public_key().raw),
            algorithm: algorithm_of(&parsed),
            is_ca: parsed.is_ca(),
            names: names_of(&parsed).into(),
            validity: validity_of(&parsed),
            serial: hex(parsed.tbs_certificate.raw_serial()).into(),
            issuer_name: parsed.issuer().to_string().into(),
            der: der.into(),
        };
        let certificate = Arc::new(certificate);
        if certificate.is_ca {
            keep(&certificate);
        }
        Ok(certificate)
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Whether `issuer` is named as the issuer of this one.
    pub fn is_issued_by(&self, issuer: &Certificate) -> bool {
        self.issuer == issuer.subject
    }

    /// Whether it names itself as its issuer: a root, or a certificate of nobody's.
    pub fn is_self_issued(&self) -> bool {
        self.issuer == self.subject
    }

    /// Whether a client's library parses it: ours takes some damage for what it is not. Asked of
    /// each certificate once.
    pub fn accepted_by_clients(&self) -> Result<(), &ErrorStack> {
        let parse = || X509::from_der(&self.der).map(drop);
        self.accepted.get_or_init(parse).as_ref().copied()
    }
}

fn met(der: &[u8]) -> Option<Arc<Certificate>> {
    let mut met = MET.lock().unwrap_or_else(PoisonError::into_inner);
    let at = met.iter().position(|known| *known.der == *der)?;
    let known = met.remove(at)?;
    met.push_front(known.clone());
    Some(known)
}

fn keep(certificate: &Arc<Certificate>) {
    let mut met = MET.lock().unwrap_or_else(PoisonError::into_inner);
    met.truncate(KEPT - 1);
    met.push_front(certificate.clone());
}

fn validity_of(certificate: &X509Certificate<'_>) -> Option<(OffsetDateTime, OffsetDateTime)> {
    let instant = |time: &ASN1Time| OffsetDateTime::from_unix_timestamp(time.timestamp()).ok();
    let validity = certificate.validity();
    Some((
        instant(&validity.not_before)?,
        instant(&validity.not_after)?,
    ))
}

fn names_of(certificate: &X509Certificate<'_>) -> Vec<Name> {
    let mut names: Vec<Name> = Vec::new();
    if let Ok(Some(extension)) = certificate.subject_alternative_name() {
        for general in &extension.value.general_names {
            let name = match general {
                GeneralName::DNSName(dns) => dns.parse().ok(),
                GeneralName::IPAddress(octets) => ip_of(octets),
                _ => None,
            };
            names.extend(name.filter(|name| !names.contains(name)));
        }
    }
    if names.is_empty() {
        let common_name = certificate.subject().iter_common_name().next();
        names.extend(
            common_name
                .and_then(|cn| cn.as_str().ok())
                .and_then(|cn| cn.parse().ok()),
        );
    }
    names
}

fn ip_of(octets: &[u8]) -> Option<Name> {
    let ip: IpAddr = match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok()?.into(),
        16 => <[u8; 16]>::try_from(octets).ok()?.into(),
        _ => return None,
    };
    Some(Name::Ip(ip.to_canonical()))
}

fn algorithm_of(certificate: &X509Certificate<'_>) -> KeyAlgorithm {
    use x509_parser::oid_registry as oid;
    let algorithm = &certificate.public_key().algorithm.algorithm;
    if *algorithm == oid::OID_PKCS1_RSAENCRYPTION {
        KeyAlgorithm::Rsa
    } else if *algorithm == oid::OID_SIG_ED25519 {
        KeyAlgorithm::Ed25519
    } else {
        KeyAlgorithm::Ecdsa
    }
}

/// Bytes in lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 0xf)]);
    let digits = |byte: &u8| [digit(byte >> 4), digit(*byte)];
    bytes.iter().flat_map(digits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::testing;

    #[test]
    fn a_cas_certificate_is_parsed_once_and_others_are_not_kept() {
        let ca = testing::intermediate();
        let parse = |der: &[u8]| Certificate::parse(der.to_vec()).unwrap();
        assert!(Arc::ptr_eq(&parse(ca.der()), &parse(ca.der())));
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let leaf = params.self_signed(&key).unwrap();
        assert!(!Arc::ptr_eq(&parse(leaf.der()), &parse(leaf.der())));
        for _ in 0..KEPT {
            parse(testing::intermediate().der());
        }
        assert!(MET.lock().unwrap().len() <= KEPT);
    }

    #[test]
    fn hex_has_two_digits_for_each_byte() {
        assert_eq!(hex(&[0x00, 0x0f, 0xf0, 0xab]), "000ff0ab");
    }
}
