//! A certificate file and a key file, or one with both, of any form and content. What loads has to
//! be a pair, by the TLS library's own judgement and by a whole handshake, and its names have to be
//! its own.

#![no_main]

use boring::pkcs12::Pkcs12;
use boring::pkey::{PKey, Private};
use boring::sha::sha256;
use boring::symm::Cipher;
use boring::x509::X509;
use libfuzzer_sys::fuzz_target;
use perennial::certificate::certified_key::CertifiedKey;
use perennial::certificate::material::{Material, MaterialError, Password};
use perennial::certificate::name::Name;
use perennial_fuzz::input::{byte, join, part};
use perennial_fuzz::{handshake, pair, write_seeds};

/// Bits before the input.
const CERTIFICATE_IN_PEM: u8 = 1;
const KEY_IN_PEM: u8 = 2;
const COMBINED: u8 = 4;
const WITH_PASSWORD: u8 = 8;
/// Two bits that say how the PEM block of the key is called.
const KEY_LABEL: u8 = 16;

const KEY_LABELS: [&str; 4] = [
    "PRIVATE KEY",
    "EC PRIVATE KEY",
    "RSA PRIVATE KEY",
    "ENCRYPTED PRIVATE KEY",
];

fuzz_target!(init: write_seeds(seeds), |data: &[u8]| {
    let mut rest = data;
    let bits = byte(&mut rest);
    let password = String::from_utf8_lossy(part(&mut rest)).into_owned();
    let password = Password::from_file_content(&password);
    let password = (bits & WITH_PASSWORD != 0).then_some(&password);
    let mut certificate = part(&mut rest).to_vec();
    let mut key = rest.to_vec();
    if bits & CERTIFICATE_IN_PEM != 0 {
        certificate = pem("CERTIFICATE", &certificate);
    }
    if bits & KEY_IN_PEM != 0 {
        let label = usize::from(bits / KEY_LABEL) % KEY_LABELS.len();
        key = pem(KEY_LABELS[label], &key);
    }
    if bits & COMBINED != 0 {
        certificate.extend_from_slice(&key);
        key = certificate.clone();
    }
    let certificate = parse(&certificate, password);
    let key = parse(&key, password);
    if let (Ok(certificate), Ok(key)) = (certificate, key) {
        // Not every pair can be made of what two files hold, but the error is in words.
        match CertifiedKey::from_materials(&certificate, &key) {
            Ok(certified) => check(&certified, &certificate, &key),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});

fn parse(bytes: &[u8], password: Option<&Password>) -> Result<Material, MaterialError> {
    let parsed = Material::parse(bytes, password);
    match &parsed {
        Ok(material) => {
            assert!(!material.certificates.is_empty() || !material.keys.is_empty());
            let leaf = material.leaf();
            assert!(leaf.is_none() || !material.certificates.is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    parsed
}

fn check(certified: &CertifiedKey, certificate: &Material, key: &Material) {
    let leaf = certificate
        .certificates
        .iter()
        .map(|one| one.der())
        .find(|der| sha256(der) == certified.fingerprint().0)
        .expect("the leaf is one of the certificates");
    // The library may be stricter than our parser with what is not part of a handshake.
    if let Ok(public) = X509::from_der(leaf).and_then(|leaf| leaf.public_key()) {
        let fits = key.keys.iter().any(|key| key.key.public_eq(&public));
        assert!(fits, "no key is the certificate's");
    }
    assert!((1..=certificate.certificates.len()).contains(&certified.chain_length()));
    assert!(!certified.names().is_empty());
    for name in certified.names() {
        assert_eq!(name.to_string().parse().as_ref(), Ok(name));
        let host = match name {
            Name::Wildcard(parent) => Name::Dns(format!("x.{parent}").into()),
            other => other.clone(),
        };
        assert!(certified.covers(&host), "{name} is not covered");
    }
    certified.chain_notes().for_each(drop);
    assert!(!certified.serial().is_empty());
    match handshake::shown(certified) {
        Ok(shown) => assert_eq!(shown, certified.fingerprint()),
        Err(error) => panic!("{certified:?} cannot be served: {error}"),
    }
}

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    let text = boring::base64::encode_block(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n").into_bytes()
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let algorithms = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ];
    for (number, algorithm) in algorithms.into_iter().enumerate() {
        let (certificate, key) = pair("*.a.test", algorithm);
        let in_pem = CERTIFICATE_IN_PEM | KEY_IN_PEM;
        let (leaf, der) = (certificate.der(), key.serialize_der());
        seeds.push(join(in_pem, [b"", leaf, &der]));
        seeds.push(join(in_pem | COMBINED, [b"", leaf, &der]));
        seeds.push(join(0, [b"", leaf, &der]));
        let text = certificate.pem() + &key.serialize_pem();
        seeds.push(join(COMBINED, [b"", text.as_bytes(), b""]));
        if number < 2 {
            let key = PKey::private_key_from_der(&der).unwrap();
            seeds.extend(encrypted(&X509::from_der(leaf).unwrap(), &key));
        }
    }
    seeds
}

/// Few rounds: what takes long finds nothing.
fn encrypted(leaf: &X509, key: &PKey<Private>) -> Vec<Vec<u8>> {
    let password = b"secret";
    let mut builder = Pkcs12::builder();
    builder.key_iter(1).mac_iter(1);
    let store = builder.build("secret", "a", key, leaf).unwrap();
    let store = store.to_der().unwrap();
    let der = leaf.to_der().unwrap();
    let new = key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), password);
    let ec = key.ec_key().unwrap();
    let old = ec.private_key_to_pem_passphrase(Cipher::aes_256_cbc(), password);
    let sec1 = ec.private_key_to_der().unwrap();
    vec![
        join(WITH_PASSWORD | COMBINED, [password, &store, b""]),
        join(WITH_PASSWORD, [password, &store, &store]),
        join(WITH_PASSWORD, [password, &der, &new.unwrap()]),
        join(WITH_PASSWORD, [password, &der, &old.unwrap()]),
        join(
            CERTIFICATE_IN_PEM | KEY_IN_PEM | KEY_LABEL,
            [b"", &der, &sec1],
        ),
    ]
}
