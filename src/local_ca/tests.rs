use std::os::unix::fs::PermissionsExt;

use boring::stack::Stack;
use boring::x509::store::X509StoreBuilder;
use boring::x509::{X509, X509StoreContext};

use super::*;
use crate::clock;

struct Fixture {
    _directory: tempfile::TempDir,
    ca: LocalCa,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let ca = LocalCa::new(&StateDir::open(directory.path()).unwrap());
    Fixture {
        _directory: directory,
        ca,
    }
}

fn names(texts: &[&str]) -> Vec<Name> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn issue(ca: &LocalCa, texts: &[&str], now: OffsetDateTime) -> IssuedLeaf {
    let names = names(texts);
    ca.issue(&names, KeyType::P256, &names, now).unwrap()
}

/// What two independent verifiers say about the chain under the root on disk, at the present time.
/// BoringSSL knows no constraints on addresses and refuses every leaf with an address that stands
/// under some, so that it is asked about DNS names alone.
fn verify(ca: &LocalCa, fullchain_pem: &str) -> Result<(), String> {
    let (leaf, chain) = Leaf::from_chain_pem(fullchain_pem.as_bytes()).unwrap();
    let root = chain_der(&fs::read(ca.root_path()).unwrap())
        .unwrap()
        .remove(0);
    for name in &leaf.names {
        let host = match name {
            Name::Wildcard(parent) => format!("x.{parent}"),
            other => other.to_string(),
        };
        verify_webpki(&root, &chain, &host)?;
    }
    if leaf.names.iter().all(|name| !matches!(name, Name::Ip(_))) {
        verify_boring(&root, &chain)?;
    }
    Ok(())
}

fn verify_webpki(root: &[u8], chain: &[Vec<u8>], host: &str) -> Result<(), String> {
    use rustls::client::danger::ServerCertVerifier;
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(root.to_vec())).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
            .build()
            .unwrap();
    let others: Vec<CertificateDer<'_>> = chain[1..]
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let leaf = CertificateDer::from(chain[0].as_slice());
    let host = ServerName::try_from(host).unwrap();
    verifier
        .verify_server_cert(&leaf, &others, &host, &[], UnixTime::now())
        .map(|_| ())
        .map_err(|error| error.to_string())
}

fn verify_boring(root: &[u8], chain: &[Vec<u8>]) -> Result<(), String> {
    let mut trusted = X509StoreBuilder::new().unwrap();
    trusted.add_cert(X509::from_der(root).unwrap()).unwrap();
    let mut others = Stack::new().unwrap();
    for der in &chain[1..] {
        others.push(X509::from_der(der).unwrap()).unwrap();
    }
    let leaf = X509::from_der(&chain[0]).unwrap();
    let mut context = X509StoreContext::new().unwrap();
    context
        .init(&trusted.build(), &leaf, &others, |context| {
            let good = context.verify_cert()?;
            Ok(if good {
                Ok(())
            } else {
                Err(format!("{:?}", context.verify_result()))
            })
        })
        .unwrap()
}

fn constraints_of(fullchain_pem: &str) -> Permitted {
    let chain = chain_der(fullchain_pem.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&chain[1]).unwrap();
    constraints::of_certificate(&certificate).unwrap()
}

#[test]
fn chains_verify() {
    let fixture = fixture();
    for hosts in [
        &["localhost"][..],
        &["a.localhost", "*.dev.localhost"],
        &["127.0.0.1", "::1", "10.20.30.40", "fd00::17"],
        &["printer.local", "nas.home.arpa", "x.internal"],
        &["intranet", "*.corp.example", "203.0.113.7"],
    ] {
        let issued = issue(&fixture.ca, hosts, clock::now());
        assert_eq!(
            verify(&fixture.ca, &issued.fullchain_pem),
            Ok(()),
            "{hosts:?}"
        );
        assert!(issued.leaf.covers(&names(hosts)));
        let key = KeyPair::from_pem(&issued.private_key_pem).unwrap();
        assert_eq!(key.subject_public_key_info(), issued.leaf.public_key);
    }
}

#[test]
fn every_key_type_works() {
    let fixture = fixture();
    let host = names(&["localhost"]);
    for key_type in [KeyType::P384, KeyType::Rsa2048] {
        let issued = fixture
            .ca
            .issue(&host, key_type, &host, clock::now())
            .unwrap();
        assert_eq!(verify(&fixture.ca, &issued.fullchain_pem), Ok(()));
    }
}

#[test]
fn the_intermediate_cannot_sign_for_the_world() {
    let fixture = fixture();
    let now = clock::now();
    issue(&fixture.ca, &["localhost"], now);
    // A thief of the intermediate's key signs for other names with it.
    let intermediate = load(
        &fixture.ca.dir.join("intermediate.pem"),
        &fixture.ca.dir.join("intermediate.key"),
    )
    .unwrap()
    .unwrap();
    for (host, good) in [
        ("localhost", true),
        ("10.0.0.1", true),
        ("bank.example", false),
        ("8.8.8.8", false),
        ("2001:db8::1", false),
        ("notlocalhost", false),
    ] {
        let params = leaf_params(&names(&[host]), now, intermediate.not_after).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params
            .signed_by(&key, &intermediate.issuer().unwrap())
            .unwrap();
        let chain = chain_pem(&[certificate.der().to_vec(), intermediate.der.clone()]);
        assert_eq!(verify(&fixture.ca, &chain).is_ok(), good, "{host}");
    }
}

#[test]
fn files_and_modes() {
    let fixture = fixture();
    issue(&fixture.ca, &["localhost"], clock::now());
    let mode = |name: &str| {
        let path = fixture.ca.dir.join(name);
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    for (name, expected) in [
        ("root.pem", 0o644),
        ("root.key", 0o600),
        ("intermediate.pem", 0o644),
        ("intermediate.key", 0o600),
    ] {
        assert_eq!(mode(name), expected, "{name}");
    }
    let root = X509::from_pem(&fs::read(fixture.ca.root_path()).unwrap()).unwrap();
    let subject = format!("{:?}", root.subject_name());
    assert!(
        subject.contains("Perennial Local Authority 20"),
        "{subject}"
    );
}

#[test]
fn root_and_intermediate_stay() {
    let fixture = fixture();
    let now = clock::now();
    let first = issue(&fixture.ca, &["localhost"], now);
    let root = fs::read(fixture.ca.root_path()).unwrap();
    let second = issue(&fixture.ca, &["a.localhost"], now + Duration::days(30));
    assert_eq!(fs::read(fixture.ca.root_path()).unwrap(), root);
    let intermediate = |pem: &str| chain_der(pem.as_bytes()).unwrap()[1].clone();
    assert_eq!(
        intermediate(&first.fullchain_pem),
        intermediate(&second.fullchain_pem)
    );
    assert_ne!(first.leaf.serial, second.leaf.serial);
    let life = first.leaf.not_after - first.leaf.not_before;
    assert_eq!(life, Duration::days(7) + Duration::HOUR);
}

#[test]
fn the_intermediate_is_renewed_with_a_third_left_and_the_leaf_never_outlives_it() {
    let fixture = fixture();
    let now = clock::now();
    let first = issue(&fixture.ca, &["localhost"], now);
    let later = issue(&fixture.ca, &["localhost"], now + Duration::days(250));
    let intermediate = |pem: &str| chain_der(pem.as_bytes()).unwrap()[1].clone();
    assert_ne!(
        intermediate(&first.fullchain_pem),
        intermediate(&later.fullchain_pem)
    );
    let last_days = leaf_params(&names(&["localhost"]), now, now + Duration::DAY).unwrap();
    assert_eq!(last_days.not_after, now + Duration::DAY);
    // Near the root's end the intermediate ends with the root.
    let end = issue(&fixture.ca, &["localhost"], now + Duration::days(3650));
    let again = issue(&fixture.ca, &["localhost"], now + Duration::days(3651));
    assert_eq!(
        intermediate(&end.fullchain_pem),
        intermediate(&again.fullchain_pem)
    );
    let root = Leaf::from_chain_pem(&fs::read(fixture.ca.root_path()).unwrap())
        .unwrap()
        .0;
    assert!(again.leaf.not_after <= root.not_after);
    let host = names(&["localhost"]);
    let after = now + Duration::days(3653);
    assert!(
        fixture
            .ca
            .issue(&host, KeyType::P256, &host, after)
            .is_err()
    );
}

#[test]
fn a_name_that_does_not_fit_makes_a_new_intermediate_for_all() {
    let fixture = fixture();
    let now = clock::now();
    let first = issue(&fixture.ca, &["localhost"], now);
    assert!(!constraints::permits(
        &constraints_of(&first.fullchain_pem),
        &names(&["intranet"])
    ));
    let all = names(&["localhost", "intranet", "wiki"]);
    let second = fixture
        .ca
        .issue(&all[1..2], KeyType::P256, &all, now)
        .unwrap();
    let permitted = constraints_of(&second.fullchain_pem);
    assert!(constraints::permits(&permitted, &all));
    assert_eq!(verify(&fixture.ca, &second.fullchain_pem), Ok(()));
    let third = fixture
        .ca
        .issue(&all[2..], KeyType::P256, &all, now)
        .unwrap();
    let intermediate = |pem: &str| chain_der(pem.as_bytes()).unwrap()[1].clone();
    assert_eq!(
        intermediate(&second.fullchain_pem),
        intermediate(&third.fullchain_pem)
    );

    let texts: Vec<String> = (0..40).map(|n| format!("host{n}")).collect();
    let many: Vec<Name> = texts.iter().map(|text| text.parse().unwrap()).collect();
    let free = fixture
        .ca
        .issue(&many[..1], KeyType::P256, &many, now)
        .unwrap();
    assert_eq!(constraints_of(&free.fullchain_pem), None);
    assert_eq!(verify(&fixture.ca, &free.fullchain_pem), Ok(()));
}

#[test]
fn a_crash_between_key_and_certificate_heals_for_the_intermediate() {
    let fixture = fixture();
    let now = clock::now();
    issue(&fixture.ca, &["localhost"], now);
    let other = KeyPair::generate().unwrap().serialize_pem();
    fs::write(fixture.ca.dir.join("intermediate.key"), other).unwrap();
    let issued = issue(&fixture.ca, &["localhost"], now);
    assert_eq!(verify(&fixture.ca, &issued.fullchain_pem), Ok(()));
    fs::remove_file(fixture.ca.dir.join("intermediate.key")).unwrap();
    let issued = issue(&fixture.ca, &["localhost"], now);
    assert_eq!(verify(&fixture.ca, &issued.fullchain_pem), Ok(()));
}

#[test]
fn a_crash_before_the_first_root_certificate_starts_over() {
    let fixture = fixture();
    fs::write(fixture.ca.dir.join("root.key"), "half").unwrap();
    let issued = issue(&fixture.ca, &["localhost"], clock::now());
    assert_eq!(verify(&fixture.ca, &issued.fullchain_pem), Ok(()));
}

#[test]
fn a_broken_root_is_never_replaced_silently() {
    let fixture = fixture();
    let now = clock::now();
    issue(&fixture.ca, &["localhost"], now);
    let root = fs::read(fixture.ca.root_path()).unwrap();
    fs::remove_file(fixture.ca.dir.join("root.key")).unwrap();
    let host = names(&["localhost"]);
    let message = match fixture.ca.issue(&host, KeyType::P256, &host, now) {
        Ok(_) => panic!("issued without the root's key"),
        Err(error) => error.to_string(),
    };
    assert!(
        message.contains("root.key") && message.contains("remove"),
        "{message}"
    );
    assert_eq!(fs::read(fixture.ca.root_path()).unwrap(), root);
}

#[test]
fn a_new_root_makes_a_new_intermediate() {
    let fixture = fixture();
    let now = clock::now();
    issue(&fixture.ca, &["localhost"], now);
    fs::remove_file(fixture.ca.root_path()).unwrap();
    let issued = issue(&fixture.ca, &["localhost"], now);
    assert_eq!(verify(&fixture.ca, &issued.fullchain_pem), Ok(()));
}
