//! What a bundle of authorities, a revocation list or a client identity holds, and the store that
//! BoringSSL verifies clients against. Knows formats, not files.

use std::ptr;
use std::sync::Arc;

use boring::error::ErrorStack;
use boring::pkey::{PKey, Private};
use boring::x509::X509;
use boring::x509::store::{X509Store, X509StoreBuilder};
use boring::x509::verify::X509VerifyFlags;
use boring_sys as ffi;
use foreign_types::ForeignTypeRef;
use time::OffsetDateTime;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::material::Material;
use super::pem;
use super::x509::Certificate;

/// A bundle of authorities; never empty.
#[derive(Clone)]
pub struct Bundle {
    pub certificates: Vec<X509>,
    /// When the last of them expires. Bundles often hold a few that have.
    pub not_after: Option<OffsetDateTime>,
}

impl Bundle {
    /// PEM or DER. The error continues a file's name.
    pub fn parse(bytes: &[u8]) -> Result<Bundle, String> {
        let material = Material::parse(bytes, None).map_err(|error| error.to_string())?;
        if material.certificates.is_empty() {
            return Err("holds no certificate".to_owned());
        }
        let ends = material.certificates.iter().filter_map(|one| end_of(one));
        Ok(Bundle {
            not_after: ends.max(),
            certificates: parse_certificates(&material.certificates)?,
        })
    }
}

/// Certificate revocation lists (RFC 5280 section 5); never empty.
pub struct RevocationLists {
    lists: Vec<Vec<u8>>,
    /// When the first of them is out of date.
    pub next_update: Option<OffsetDateTime>,
}

impl RevocationLists {
    /// PEM (`-----BEGIN X509 CRL-----`, any number) or one in DER.
    pub fn parse(bytes: &[u8]) -> Result<RevocationLists, String> {
        let lists = ders(bytes)?;
        let mut next_update = None;
        for (index, der) in lists.iter().enumerate() {
            let wrong = |cause: String| {
                let position = index + 1;
                format!("revocation list {position} in it cannot be parsed: {cause}")
            };
            let (rest, list) = CertificateRevocationList::from_der(der)
                .map_err(|error| wrong(error.to_string()))?;
            if !rest.is_empty() {
                return Err(wrong("it has trailing bytes".to_owned()));
            }
            let end = list.next_update().map(|time| time.timestamp());
            let end = end.and_then(|end| OffsetDateTime::from_unix_timestamp(end).ok());
            next_update = next_update.into_iter().chain(end).min();
        }
        Ok(RevocationLists { lists, next_update })
    }

    pub fn len(&self) -> usize {
        self.lists.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }
}

fn ders(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err("is empty".to_owned());
    }
    if bytes.starts_with(b"\x30") {
        return Ok(vec![bytes.to_vec()]);
    }
    let mut lists = Vec::new();
    for block in pem::blocks(bytes) {
        let block = block.map_err(|error| error.to_string())?;
        if block.label == b"X509 CRL" {
            lists.push(block.decode().map_err(|error| error.to_string())?);
        }
    }
    match lists.is_empty() {
        true => Err("holds no revocation list (expected -----BEGIN X509 CRL-----)".to_owned()),
        false => Ok(lists),
    }
}

/// A certificate to show to a server, its chain, and its key.
pub struct Identity {
    /// Leaf first, without roots.
    pub certificates: Vec<X509>,
    pub key: PKey<Private>,
    pub not_after: Option<OffsetDateTime>,
}

/// What is wrong with an identity, and with which of its two files.
pub struct IdentityError {
    pub in_key_file: bool,
    pub cause: String,
}

impl Identity {
    /// Out of a certificate file and a key file, which may be the same.
    pub fn parse(certificate: &[u8], key: &[u8]) -> Result<Identity, IdentityError> {
        let at = |in_key_file| move |cause| IdentityError { in_key_file, cause };
        let parse = |bytes| Material::parse(bytes, None).map_err(|error| error.to_string());
        let chain = parse(certificate).map_err(at(false))?.certificates;
        let keys = parse(key).map_err(at(true))?.keys;
        if chain.is_empty() {
            return Err(at(false)("holds no certificate".to_owned()));
        }
        let certificates = parse_certificates(&chain).map_err(at(false))?;
        let fits = |certificate: &X509, key: &PKey<Private>| {
            certificate
                .public_key()
                .is_ok_and(|public| public.public_eq(key))
        };
        for key in keys {
            let leaf = certificates.iter().position(|one| fits(one, &key.key));
            if let Some(leaf) = leaf {
                return Ok(Identity {
                    not_after: end_of(&chain[leaf]),
                    certificates: ordered(&certificates, &chain, leaf),
                    key: key.key,
                });
            }
        }
        Err(at(true)(
            "holds no private key that fits the certificate".to_owned(),
        ))
    }
}

fn ordered(certificates: &[X509], chain: &[Arc<Certificate>], leaf: usize) -> Vec<X509> {
    let is_root = |index: &usize| chain[*index].is_self_issued();
    let rest = (0..certificates.len()).filter(|index| *index != leaf && !is_root(index));
    std::iter::once(leaf)
        .chain(rest)
        .map(|index| certificates[index].clone())
        .collect()
}

fn parse_certificates(certificates: &[Arc<Certificate>]) -> Result<Vec<X509>, String> {
    let parse = |(index, certificate): (usize, &Arc<Certificate>)| {
        X509::from_der(certificate.der()).map_err(|error| {
            let position = index + 1;
            format!("certificate {position} in it is refused by the TLS library: {error}")
        })
    };
    certificates.iter().enumerate().map(parse).collect()
}

fn end_of(certificate: &Certificate) -> Option<OffsetDateTime> {
    certificate.validity.map(|(_, end)| end)
}

/// A store that verifies clients' certificates. With revocation lists, every certificate on the
/// way to a root needs a list of its issuer that is up to date: without one the client is refused.
pub fn client_store(
    bundle: &Bundle,
    lists: Option<&RevocationLists>,
) -> Result<X509Store, ErrorStack> {
    let mut store = X509StoreBuilder::new()?;
    // SAFETY: the store is alive, and nobody else has it yet.
    if unsafe { ffi::X509_STORE_set_purpose(store.as_ptr(), ffi::X509_PURPOSE_SSL_CLIENT) } != 1 {
        return Err(ErrorStack::get());
    }
    for certificate in &bundle.certificates {
        store.add_cert(certificate)?;
    }
    if let Some(lists) = lists {
        store.try_set_flags(X509VerifyFlags::CRL_CHECK | X509VerifyFlags::CRL_CHECK_ALL)?;
        for der in &lists.lists {
            add_list(&mut store, der)?;
        }
    }
    Ok(store.build())
}

fn add_list(store: &mut X509StoreBuilder, der: &[u8]) -> Result<(), ErrorStack> {
    let mut position = der.as_ptr();
    // No file is larger than 1 MiB.
    let length = der.len() as std::ffi::c_long;
    // SAFETY: pointer and length describe `der`, which the callee only reads and copies; a null
    // first argument asks for a new object, and a null result is handled.
    let list = unsafe { ffi::d2i_X509_CRL(ptr::null_mut(), &mut position, length) };
    if list.is_null() {
        return Err(ErrorStack::get());
    }
    // SAFETY: both are alive; the store takes a reference of its own, and ours is given back.
    let added = unsafe {
        let added = ffi::X509_STORE_add_crl(store.as_ptr(), list);
        ffi::X509_CRL_free(list);
        added
    };
    match added {
        1 => Ok(()),
        _ => Err(ErrorStack::get()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use boring::stack::Stack;
    use boring::x509::{X509StoreContext, X509VerifyError};
    use rcgen::{CertificateParams, CertificateRevocationListParams, Issuer, KeyPair};

    struct Ca {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    fn ca() -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Ca { pem, issuer }
    }

    /// A client of serial number 7 and its key.
    fn client(ca: &Ca) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["client.test".to_owned()]).unwrap();
        params.serial_number = Some(7.into());
        // As the authority has it by default, which would make the certificate self-signed.
        params.distinguished_name = rcgen::DistinguishedName::new();
        let certificate = params.signed_by(&key, &ca.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn list(
        ca: &Ca,
        revoked: &[u64],
        valid_for: time::Duration,
    ) -> rcgen::CertificateRevocationList {
        let now = crate::clock::now();
        let revoked = revoked.iter().map(|serial| rcgen::RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        });
        CertificateRevocationListParams {
            this_update: now - time::Duration::DAY,
            next_update: now + valid_for,
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        }
        .signed_by(&ca.issuer)
        .unwrap()
    }

    fn verify(ca: &Ca, list: Option<&[u8]>) -> Result<(), X509VerifyError> {
        let bundle = Bundle::parse(ca.pem.as_bytes()).unwrap();
        let lists = list.map(|bytes| RevocationLists::parse(bytes).unwrap());
        let store = client_store(&bundle, lists.as_ref()).unwrap();
        let client = X509::from_pem(client(ca).0.as_bytes()).unwrap();
        let chain = Stack::new().unwrap();
        let mut context = X509StoreContext::new().unwrap();
        context
            .init(&store, &client, &chain, |context| {
                context.verify_cert()?;
                Ok(context.verify_result())
            })
            .unwrap()
    }

    #[test]
    fn revocation_lists_are_heeded_and_must_be_there_and_up_to_date() {
        let (ca, other, day) = (super::tests::ca(), super::tests::ca(), time::Duration::DAY);
        assert_eq!(verify(&ca, None), Ok(()));
        let pem = list(&ca, &[8], day).pem().unwrap();
        assert_eq!(verify(&ca, Some(pem.as_bytes())), Ok(()));
        let der = list(&ca, &[7], day);
        let revoked = Err(X509VerifyError::CERT_REVOKED);
        assert_eq!(verify(&ca, Some(der.der())), revoked);
        let old = list(&ca, &[], -day / 2);
        let expired = Err(X509VerifyError::CRL_HAS_EXPIRED);
        assert_eq!(verify(&ca, Some(old.der())), expired);
        let foreign = list(&other, &[], day).pem().unwrap();
        assert!(verify(&ca, Some(foreign.as_bytes())).is_err());
    }

    #[test]
    fn what_is_no_list_says_why() {
        let pem = list(&ca(), &[], time::Duration::DAY).pem().unwrap();
        let cause = |bytes: &[u8]| RevocationLists::parse(bytes).err().unwrap();
        assert_eq!(cause(b" \n"), "is empty");
        assert!(cause(&pem.as_bytes()[..pem.len() / 2]).starts_with("is cut off"));
        assert!(cause(ca().pem.as_bytes()).starts_with("holds no revocation list"));
        assert!(cause(b"\x30\x03\x02\x01\x01").contains("cannot be parsed"));
        let two = RevocationLists::parse(format!("{pem}{pem}").as_bytes()).unwrap();
        assert_eq!(two.len(), 2);
    }

    #[test]
    fn an_identity_needs_the_key_of_its_certificate() {
        let ca = ca();
        let ((certificate, key), (_, other_key)) = (client(&ca), client(&ca));
        let combined = format!("{key}{certificate}{}", ca.pem);
        let parsed = Identity::parse(combined.as_bytes(), combined.as_bytes());
        let parsed = parsed.map_err(|error| error.cause).unwrap();
        assert_eq!(parsed.certificates.len(), 1, "without the root");
        let wrong = Identity::parse(certificate.as_bytes(), other_key.as_bytes());
        assert!(wrong.is_err_and(|error| error.in_key_file));
        let none = Identity::parse(key.as_bytes(), key.as_bytes());
        assert!(none.is_err_and(|error| !error.in_key_file));
    }
}
