//! Every form that certificates and keys come in.

use base64::prelude::*;
use boring::pkcs12::Pkcs12;
use boring::pkey::PKey;
use boring::rsa::Rsa;
use boring::symm::Cipher;
use boring::x509::X509;

use super::*;
use crate::certificate::testing::{Pair, Request};
use crate::clock;

fn pair() -> Pair {
    Request::new(&["a.test"], clock::now()).issue()
}

fn rsa_pair() -> Pair {
    Request {
        algorithm: &rcgen::PKCS_RSA_SHA256,
        ..Request::new(&["a.test"], clock::now())
    }
    .issue()
}

fn chain() -> Pair {
    Request {
        intermediate: true,
        ..Request::new(&["a.test"], clock::now())
    }
    .issue()
}

fn parse(bytes: impl AsRef<[u8]>) -> Result<Material, MaterialError> {
    Material::parse(bytes.as_ref(), None)
}

fn with_password(bytes: impl AsRef<[u8]>, password: &str) -> Result<Material, MaterialError> {
    Material::parse(bytes.as_ref(), Some(&Password::from_file_content(password)))
}

fn pkey(pair: &Pair) -> PKey<Private> {
    PKey::private_key_from_pem(pair.key.as_bytes()).unwrap()
}

/// What was parsed is the key of the pair.
fn assert_is_key(material: &Material, pair: &Pair) {
    let [key] = &material.keys[..] else {
        panic!("{} keys", material.keys.len())
    };
    assert!(key.key.public_eq(&pkey(pair)));
}

#[test]
fn blocks_in_any_order_with_text_between() {
    let Pair { certificate, key } = pair();
    let material = parse(format!(
        "# my key\r\n{key}\nsubject=/CN=a.test\n{certificate}\n\n"
    ))
    .unwrap();
    assert_eq!(material.certificates.len(), 1);
    assert_eq!(
        material.leaf().unwrap().public_key,
        material.keys[0].public_key
    );
}

#[test]
fn windows_line_ends_and_a_byte_order_mark() {
    let Pair { certificate, key } = pair();
    let text = format!("\u{feff}{certificate}{key}").replace('\n', "\r\n");
    let material = parse(text).unwrap();
    assert_eq!((material.certificates.len(), material.keys.len()), (1, 1));
}

#[test]
fn every_form_of_an_ecdsa_key() {
    let pair = pair();
    let key = pkey(&pair);
    let sec1 = key.ec_key().unwrap().private_key_to_pem().unwrap();
    for (form, bytes) in [
        ("PKCS#8 PEM", pair.key.clone().into_bytes()),
        ("SEC1 PEM", sec1),
        ("SEC1 DER", key.private_key_to_der().unwrap()),
        ("PKCS#8 DER", key.private_key_to_der_pkcs8().unwrap()),
    ] {
        assert_is_key(
            &parse(bytes).unwrap_or_else(|error| panic!("{form}: {error}")),
            &pair,
        );
    }
}

#[test]
fn every_form_of_an_rsa_key() {
    let pair = rsa_pair();
    let key = pkey(&pair);
    let rsa = key.rsa().unwrap();
    for (form, bytes) in [
        ("PKCS#8 PEM", pair.key.clone().into_bytes()),
        ("PKCS#1 PEM", rsa.private_key_to_pem().unwrap()),
        ("PKCS#1 DER", rsa.private_key_to_der().unwrap()),
        ("PKCS#8 DER", key.private_key_to_der_pkcs8().unwrap()),
    ] {
        assert_is_key(
            &parse(bytes).unwrap_or_else(|error| panic!("{form}: {error}")),
            &pair,
        );
    }
}

#[test]
fn a_der_certificate() {
    let der = X509::from_pem(pair().certificate.as_bytes())
        .unwrap()
        .to_der()
        .unwrap();
    let material = parse(&der).unwrap();
    assert_eq!(material.certificates.len(), 1);
    assert_eq!(material.certificates[0].der(), der);
    let trailing = [&der[..], b"x"].concat();
    assert_eq!(parse(trailing).err(), Some(MaterialError::Foreign));
}

#[test]
fn an_encrypted_key_opens_with_its_password_alone() {
    let pair = pair();
    let new = pkey(&pair)
        .private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), b"secret")
        .unwrap();
    let old = pkey(&pair)
        .ec_key()
        .unwrap()
        .private_key_to_pem_passphrase(Cipher::aes_256_cbc(), b"secret")
        .unwrap();
    for encrypted in [new, old] {
        let both = [pair.certificate.as_bytes(), &encrypted].concat();
        assert_eq!(parse(&both).err(), Some(MaterialError::PasswordWanted));
        assert_eq!(
            with_password(&both, "wrong").err(),
            Some(MaterialError::WrongPassword)
        );
        let material = with_password(&both, "secret\n").unwrap();
        assert_is_key(&material, &pair);
        assert_eq!(material.certificates.len(), 1);
    }
}

#[test]
fn pkcs12_with_its_chain() {
    let pair = chain();
    let mut certificates = X509::stack_from_pem(pair.certificate.as_bytes())
        .unwrap()
        .into_iter();
    let leaf = certificates.next().unwrap();
    let mut ca = boring::stack::Stack::new().unwrap();
    certificates.for_each(|certificate| ca.push(certificate).unwrap());
    let mut builder = Pkcs12::builder();
    builder.ca(ca);
    let store = builder
        .build("secret", "a.test", &pkey(&pair), &leaf)
        .unwrap();
    let der = store.to_der().unwrap();
    assert_eq!(parse(&der).err(), Some(MaterialError::PasswordWanted));
    assert_eq!(
        with_password(&der, "wrong").err(),
        Some(MaterialError::WrongPassword)
    );
    let material = with_password(&der, "secret").unwrap();
    assert_is_key(&material, &pair);
    assert_eq!(material.certificates.len(), 2);
    assert_eq!(
        material.leaf().unwrap().public_key,
        material.keys[0].public_key
    );
}

#[test]
fn an_encrypted_key_in_der() {
    let pair = pair();
    for cipher in [Cipher::aes_256_cbc(), Cipher::des_ede3_cbc()] {
        let text = pkey(&pair)
            .private_key_to_pem_pkcs8_passphrase(cipher, b"secret")
            .unwrap();
        let block = pem::blocks(&text).next().unwrap().unwrap();
        let der = &block.decode().unwrap();
        assert_eq!(parse(der).err(), Some(MaterialError::PasswordWanted));
        assert_eq!(
            with_password(der, "wrong").err(),
            Some(MaterialError::WrongPassword)
        );
        assert_is_key(&with_password(der, "secret").unwrap(), &pair);
    }
}

/// The same structure with another number of rounds, wherever it has the old one.
fn with_rounds(der: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let at: Vec<usize> = (0..der.len() - old.len())
        .filter(|&at| der[at..].starts_with(old))
        .collect();
    assert!(!at.is_empty(), "no such number of rounds");
    let mut der = der.to_vec();
    for at in at {
        der[at..at + new.len()].copy_from_slice(new);
    }
    der
}

/// How many more or fewer rounds there are must not change the length of the structure: these are
/// five bytes long, as an INTEGER.
const FEW_ROUNDS: u32 = 70_000;
const FEW: &[u8] = b"\x02\x03\x01\x11\x70";
const MANY: &[u8] = b"\x02\x03\x7f\xff\xff";

#[test]
fn what_would_take_minutes_to_open_is_not_opened() {
    let pair = pair();
    let leaf = X509::from_pem(pair.certificate.as_bytes()).unwrap();
    let mut builder = Pkcs12::builder();
    builder.key_iter(FEW_ROUNDS).mac_iter(FEW_ROUNDS);
    let store = builder.build("secret", "a.test", &pkey(&pair), &leaf);
    let store = store.unwrap().to_der().unwrap();
    assert!(with_password(&store, "secret").is_ok());
    let greedy = with_rounds(&store, FEW, MANY);
    for password in [None, Some("secret")] {
        let password = password.map(Password::from_file_content);
        let error = Material::parse(&greedy, password.as_ref()).err().unwrap();
        assert!(matches!(error, MaterialError::TooManyRounds(sum) if sum > MAX_ROUNDS));
        assert!(error.to_string().contains("-iter"), "{error}");
    }
}

#[test]
fn a_key_that_would_take_minutes_to_open_is_not_opened() {
    let element = |tag: u8, parts: &[&[u8]]| {
        let content = parts.concat();
        [&[tag, content.len() as u8], &content[..]].concat()
    };
    // PBES2 with PBKDF2 of a hundred million rounds, the most that BoringSSL does.
    let rounds = b"\x02\x04\x05\xf5\xe1\x00";
    let salt = b"\x04\x08saltsalt";
    let pbkdf2 = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0c";
    let pbes2 = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0d";
    let derivation = element(0x30, &[pbkdf2, &element(0x30, &[salt, rounds])]);
    let algorithm = element(0x30, &[pbes2, &element(0x30, &[&derivation])]);
    let der = element(0x30, &[&algorithm, b"\x04\x10sixteen bytes..."]);
    let pem = format!(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\n{}\n-----END ENCRYPTED PRIVATE KEY-----\n",
        BASE64_STANDARD.encode(&der)
    );
    for bytes in [&der[..], pem.as_bytes()] {
        let error = with_password(bytes, "secret").err();
        assert_eq!(error, Some(MaterialError::TooManyRounds(100_000_000)));
    }
}

#[test]
fn an_ed25519_key_with_its_public_key_behind_it() {
    let pair = Request {
        algorithm: &rcgen::PKCS_ED25519,
        ..Request::new(&["a.test"], clock::now())
    }
    .issue();
    let material = parse(format!("{}{}", pair.certificate, pair.key)).unwrap();
    assert_eq!(
        material.leaf().unwrap().public_key,
        material.keys[0].public_key
    );
}

#[test]
fn a_key_that_is_too_weak_is_named() {
    let key = PKey::from_rsa(Rsa::generate(768).unwrap()).unwrap();
    let error = parse(key.private_key_to_pem_pkcs8().unwrap()).err();
    assert_eq!(error, Some(MaterialError::WeakKey { bits: 768 }));
}

#[test]
fn every_truncation_is_an_error_or_whole_blocks() {
    let Pair { certificate, key } = pair();
    let text = format!("{certificate}{key}");
    for end in 0..text.len() {
        if let Ok(material) = parse(&text.as_bytes()[..end]) {
            assert!(end >= certificate.len() - 2, "cut at {end}");
            assert_eq!(material.certificates.len(), 1);
        }
    }
}

#[test]
fn every_truncation_of_der_is_an_error() {
    let pair = pair();
    let der = X509::from_pem(pair.certificate.as_bytes())
        .unwrap()
        .to_der()
        .unwrap();
    let store = Pkcs12::builder()
        .build("", "a", &pkey(&pair), &X509::from_der(&der).unwrap())
        .unwrap();
    for whole in [der, store.to_der().unwrap()] {
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "cut at {end}");
        }
    }
}

#[test]
fn what_is_wrong_is_said() {
    let Pair { certificate, .. } = pair();
    let cut = &certificate.as_bytes()[..certificate.len() / 2];
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (bytes, wanted) in [
        (&b" \n"[..], "is empty"),
        (b"hello", "holds no PEM block"),
        (b"0 hello", "holds no PEM block"),
        (cut, "is cut off"),
        (garbage.as_bytes(), "certificate 1 in it cannot be parsed"),
        (
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "private key that cannot be read",
        ),
    ] {
        let error = parse(bytes).err().unwrap().to_string();
        assert!(
            error.contains(wanted),
            "{error:?} should contain {wanted:?}"
        );
    }
}

#[test]
fn a_password_is_never_shown() {
    let password = Password::from_file_content("secret\nsecond line");
    assert_eq!(password.as_str(), "secret");
    assert!(!format!("{password:?}").contains("secret"));
}
