//! Signing what a CSR asks for, or something else where the script says so.

use rcgen::{CertificateSigningRequestParams, PublicKeyData};
use rustls_pki_types::CertificateSigningRequestDer;

use super::jws::decode;
use super::script::{CertificateFault, Script};
use crate::support::certs::{KeyKind, TestCa, leaf_params};
use crate::support::clock;

/// The PEM chain for a base64url CSR.
pub fn issue(
    ca: &TestCa,
    script: &Script,
    base: &str,
    csr: &str,
    names: &[String],
) -> Result<String, String> {
    let csr = CertificateSigningRequestDer::from(decode(csr)?);
    let csr = CertificateSigningRequestParams::from_der(&csr).map_err(|error| error.to_string())?;
    let strange = ["somebody.else.test".to_owned()];
    let names = match script.certificate {
        CertificateFault::OtherNames => &strange[..],
        _ => names,
    };
    let leaf = match script.certificate {
        CertificateFault::OtherKey => sign(ca, script, base, &KeyKind::P256.generate(), names),
        _ => sign(ca, script, base, &csr.public_key, names),
    };
    let chain = format!("{leaf}{}", ca.intermediate_pem);
    Ok(match script.certificate {
        CertificateFault::Truncated => chain[..leaf.len() / 2].to_owned(),
        CertificateFault::CutShort => chain[..(leaf.len() + chain.len()) / 2].to_owned(),
        CertificateFault::WrongChain => format!("{leaf}{}", TestCa::new().intermediate_pem),
        _ => chain,
    })
}

fn sign(
    ca: &TestCa,
    script: &Script,
    base: &str,
    key: &impl PublicKeyData,
    names: &[String],
) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let now = clock::now() - script.behind;
    let mut params = leaf_params(&names, now, now + script.lifetime);
    script.revocation.name_in(&mut params, base);
    let leaf = params.signed_by(key, &ca.intermediate).expect("signed");
    leaf.pem()
}
