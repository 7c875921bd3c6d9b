//! Makes certificates: an authority with a root and an intermediate, leaves with any dates, names
//! and keys.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};

use super::clock;

#[derive(Clone, Copy, Debug)]
pub enum KeyKind {
    P256,
    P384,
    Rsa2048,
}

impl KeyKind {
    pub fn generate(self) -> KeyPair {
        let algorithm = match self {
            KeyKind::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyKind::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            KeyKind::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
        };
        KeyPair::generate_for(algorithm).expect("a key")
    }
}

/// A certificate with its key, as its owner would have it on disk.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub certificate_pem: String,
    pub intermediate_pem: String,
    pub key_pem: String,
    /// Lower-case hexadecimal, no separators, leading zeros kept.
    pub serial: String,
    /// SHA-256 over the DER, lower-case hexadecimal, no separators.
    pub fingerprint: String,
}

impl Leaf {
    /// The leaf, then the intermediate: what certbot calls fullchain.pem.
    pub fn chain_pem(&self) -> String {
        format!("{}{}", self.certificate_pem, self.intermediate_pem)
    }

    fn not_before(&self) -> OffsetDateTime {
        let der = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()).expect("PEM");
        let parsed = x509_parser::parse_x509_certificate(&der);
        parsed.expect("X.509").1.validity().not_before.to_datetime()
    }

    fn new(certificate: &Certificate, intermediate_pem: String, key: &KeyPair) -> Leaf {
        Leaf {
            certificate_pem: certificate.pem(),
            intermediate_pem,
            key_pem: key.serialize_pem(),
            serial: serial_of(certificate.der()),
            fingerprint: fingerprint_of(certificate.der()),
        }
    }
}

pub struct TestCa {
    pub root_pem: String,
    pub intermediate_pem: String,
    pub intermediate: Issuer<'static, KeyPair>,
}

impl TestCa {
    pub fn new() -> TestCa {
        let root_key = KeyKind::P256.generate();
        let root_params = authority("Perennial test root");
        let root = root_params.self_signed(&root_key).expect("a root");
        let root_issuer = Issuer::new(root_params, root_key);
        let key = KeyKind::P256.generate();
        let params = authority("Perennial test intermediate");
        let intermediate = params.signed_by(&key, &root_issuer).expect("signed");
        TestCa {
            root_pem: root.pem(),
            intermediate_pem: intermediate.pem(),
            intermediate: Issuer::new(params, key),
        }
    }

    /// Valid from an hour ago for 90 days.
    pub fn leaf(&self, names: &[&str]) -> Leaf {
        let begin = clock::now() - Duration::HOUR;
        self.leaf_with(names, begin, begin + Duration::days(90), KeyKind::P256)
    }

    pub fn leaf_with(
        &self,
        names: &[&str],
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
        kind: KeyKind,
    ) -> Leaf {
        self.leaf_for_key(names, not_before, not_after, &kind.generate())
    }

    /// What replaces `old` a minute later, for the same names and in files of the very same sizes,
    /// so that no size tells that anything has changed.
    pub fn successor(&self, old: &Leaf, names: &[&str], key: NextKey) -> Leaf {
        let begin = old.not_before() + Duration::MINUTE;
        let end = begin + Duration::days(90);
        let candidates = std::iter::repeat_with(|| {
            let key = match key {
                NextKey::New => KeyKind::P256.generate(),
                NextKey::Same => KeyPair::from_pem(&old.key_pem).expect("its own key"),
            };
            self.leaf_for_key(names, begin, end, &key)
        });
        let same_sizes = |leaf: &Leaf| {
            leaf.certificate_pem.len() == old.certificate_pem.len()
                && leaf.key_pem.len() == old.key_pem.len()
        };
        // An ECDSA signature is one or two bytes shorter now and then.
        let found = candidates.take(5000).find(same_sizes);
        found.expect("one of the same size")
    }

    fn leaf_for_key(
        &self,
        names: &[&str],
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
        key: &KeyPair,
    ) -> Leaf {
        let params = leaf_params(names, not_before, not_after);
        let signed = params.signed_by(key, &self.intermediate).expect("signed");
        Leaf::new(&signed, self.intermediate_pem.clone(), key)
    }
}

/// Renewers differ in whether they keep the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextKey {
    New,
    Same,
}

/// An authority without intermediates, whose clients' certificates can be revoked.
pub struct ClientCa {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl ClientCa {
    pub fn new(name: &str) -> ClientCa {
        let key = KeyKind::P256.generate();
        let params = authority(name);
        let pem = params.self_signed(&key).expect("a root").pem();
        let issuer = Issuer::new(params, key);
        ClientCa { pem, issuer }
    }

    pub fn client(&self, name: &str) -> Leaf {
        let begin = clock::now() - Duration::HOUR;
        let key = KeyKind::P256.generate();
        let params = leaf_params(&[name], begin, begin + Duration::DAY);
        let signed = params.signed_by(&key, &self.issuer).expect("signed");
        Leaf::new(&signed, String::new(), &key)
    }

    /// A revocation list, PEM.
    pub fn crl(&self, revoked: &[&Leaf], next_update: OffsetDateTime) -> String {
        let revoked = revoked.iter().map(|leaf| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&from_hex(&leaf.serial)),
            revocation_time: clock::now() - Duration::HOUR,
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: clock::now() - Duration::days(2),
            next_update,
            crl_number: random_serial(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("signed");
        list.pem().expect("PEM")
    }
}

pub fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |two| u8::from_str_radix(std::str::from_utf8(two).expect("ASCII"), 16);
    digits.map(|two| byte(two).expect("hex")).collect()
}

/// A self-signed leaf, valid for a day.
pub fn self_signed(names: &[&str]) -> Leaf {
    let begin = clock::now() - Duration::HOUR;
    let key = KeyKind::P256.generate();
    let params = leaf_params(names, begin, begin + Duration::DAY);
    Leaf::new(
        &params.self_signed(&key).expect("signed"),
        String::new(),
        &key,
    )
}

pub fn leaf_params(
    names: &[&str],
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names.clone()).expect("names");
    params.distinguished_name = common_name(&names[0]);
    params.serial_number = Some(random_serial());
    params.not_before = not_before;
    params.not_after = not_after;
    params.use_authority_key_identifier_extension = true;
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    // Two authorities of the same name are told apart by it.
    params.use_authority_key_identifier_extension = true;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = clock::now() - Duration::days(400);
    params.not_after = clock::now() + Duration::days(3650);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, name);
    distinguished_name
}

/// Positive and of full length, so that its text has one form only.
pub fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

pub fn serial_of(der: &[u8]) -> String {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).expect("a certificate");
    hex(certificate.raw_serial())
}

/// The serial of the first certificate in a PEM text.
pub fn serial_of_pem(text: &str) -> Option<String> {
    let der = CertificateDer::from_pem_slice(text.as_bytes()).ok()?;
    Some(serial_of(&der))
}

pub fn fingerprint_of(der: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    hex(digest.as_ref())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
