//! The other TLS files: bundles of authorities, revocation lists, client identities, ticket keys.

#![no_main]

use boring::pkey::PKey;
use libfuzzer_sys::fuzz_target;
use perennial::certificate::anchors::{Bundle, Identity, RevocationLists, client_store};
use perennial::listener::tickets::TicketKey;
use perennial_fuzz::input::{byte, join, part};
use perennial_fuzz::{NOW, pair, write_seeds};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber,
};

fuzz_target!(init: write_seeds(seeds), |data: &[u8]| {
    let mut rest = data;
    let kind = byte(&mut rest);
    let first = part(&mut rest);
    match kind % 3 {
        0 => store(first, rest),
        1 => identity(first, rest),
        _ => drop(TicketKey::parse(rest)),
    }
});

fn store(bundle: &[u8], lists: &[u8]) {
    let lists = RevocationLists::parse(lists);
    if let Ok(lists) = &lists {
        assert!(!lists.is_empty());
    }
    if let Ok(bundle) = Bundle::parse(bundle) {
        assert!(!bundle.certificates.is_empty());
        // What parses here may still be refused by the library, in words.
        let _ = client_store(&bundle, None);
        let _ = lists.map(|lists| client_store(&bundle, Some(&lists)));
    }
}

fn identity(certificate: &[u8], key: &[u8]) {
    if let Ok(identity) = Identity::parse(certificate, key) {
        let public = identity.certificates[0].public_key().unwrap();
        let key: &PKey<_> = &identity.key;
        assert!(public.public_eq(key), "the key is another certificate's");
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let list = CertificateRevocationListParams {
        this_update: NOW,
        next_update: NOW + time::Duration::days(7),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&issuer).unwrap();
    let (leaf, leaf_key) = pair("a.test", &rcgen::PKCS_ECDSA_P256_SHA256);
    let list_pem = list.pem().unwrap();
    vec![
        join(0, [authority.pem().as_bytes(), list_pem.as_bytes()]),
        join(0, [authority.der(), list.der()]),
        join(0, [(authority.pem() + &leaf.pem()).as_bytes(), b""]),
        join(
            1,
            [leaf.pem().as_bytes(), leaf_key.serialize_pem().as_bytes()],
        ),
        join(1, [leaf.der(), &leaf_key.serialize_der()]),
        join(2, [b"", &[7; 48]]),
        join(2, [b"", &[7; 80]]),
    ]
}
