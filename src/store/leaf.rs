//! What a certificate says about itself, as far as renewal needs it. It never judges trust.

use std::net::IpAddr;

use time::OffsetDateTime;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::name::Name;

/// The facts of one leaf certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub der: Vec<u8>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    /// From the subject alternative names.
    pub names: Vec<Name>,
    /// Lower-case hexadecimal, as the DER has it.
    pub serial: String,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// The whole SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
}

impl Leaf {
    /// Parses one DER certificate; the error is a cause without a subject.
    pub fn parse(der: &[u8]) -> Result<Leaf, String> {
        let (rest, certificate) = X509Certificate::from_der(der)
            .map_err(|error| format!("not a certificate ({error})"))?;
        if !rest.is_empty() {
            return Err("has bytes after the certificate".to_owned());
        }
        Ok(Leaf {
            der: der.to_vec(),
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
            names: names(&certificate),
            serial: hex(certificate.raw_serial()),
            issuer: certificate.issuer().to_string(),
            public_key: certificate.public_key().raw.to_vec(),
        })
    }

    /// Parses a PEM chain, leaf first, into the leaf and all DER certificates.
    pub fn from_chain_pem(pem: &[u8]) -> Result<(Leaf, Vec<Vec<u8>>), String> {
        let chain = chain_der(pem)?;
        let first = chain.first().ok_or("has no certificate")?;
        Ok((Leaf::parse(first)?, chain))
    }

    /// Whether every one of `wanted` is covered.
    pub fn covers(&self, wanted: &[Name]) -> bool {
        wanted
            .iter()
            .all(|name| self.names.iter().any(|own| own.covers(name)))
    }
}

/// All certificates of a PEM text, in order.
pub fn chain_der(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    CertificateDer::pem_slice_iter(pem)
        .map(|item| item.map(|der| der.to_vec()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("not PEM ({error:?})"))
}

/// DER certificates as PEM text.
pub fn chain_pem<C: AsRef<[u8]>>(chain: &[C]) -> String {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;

    let mut text = String::new();
    for der in chain {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let body = BASE64_STANDARD.encode(der.as_ref());
        for line in body.as_bytes().chunks(64) {
            // Base64 is ASCII, so no chunk can break a character.
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

fn names(certificate: &X509Certificate<'_>) -> Vec<Name> {
    certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(names),
            _ => None,
        })
        .flat_map(|names| &names.general_names)
        .filter_map(general_name)
        .collect()
}

fn general_name(name: &GeneralName<'_>) -> Option<Name> {
    match name {
        GeneralName::DNSName(text) => text.parse().ok(),
        GeneralName::IPAddress(bytes) => {
            let ip = match bytes.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?),
                16 => IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?),
                _ => return None,
            };
            Some(Name::Ip(ip.to_canonical()))
        }
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_read_back() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![
            "example.com".to_owned(),
            "*.example.com".to_owned(),
            "192.0.2.1".to_owned(),
        ])
        .unwrap();
        params.not_before = time::macros::datetime!(2026-01-01 0:00 UTC);
        params.not_after = time::macros::datetime!(2026-04-01 0:00 UTC);
        params.serial_number = Some(vec![0, 0xca, 0xfe].into());
        let certificate = params.self_signed(&key).unwrap();
        let pem = chain_pem(&[certificate.der()]);
        let (leaf, chain) = Leaf::from_chain_pem(pem.as_bytes()).unwrap();
        assert_eq!(chain, [certificate.der().to_vec()]);
        assert_eq!(
            (leaf.not_before, leaf.not_after),
            (params.not_before, params.not_after)
        );
        assert_eq!(leaf.serial, "00cafe");
        let wanted: Vec<Name> = ["www.example.com", "example.com", "192.0.2.1"]
            .map(|name| name.parse().unwrap())
            .to_vec();
        assert!(leaf.covers(&wanted));
        assert!(!leaf.covers(&["a.b.example.com".parse().unwrap()]));
    }

    #[test]
    fn broken_text_is_an_error() {
        for pem in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert!(Leaf::from_chain_pem(pem.as_bytes()).is_err(), "{pem:?}");
        }
    }
}
