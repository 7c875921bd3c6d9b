//! New private keys of the configured kinds.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize};

use crate::config::KeyType;

/// A new key. RSA takes up to seconds of CPU: call it where blocking is allowed.
pub fn generate(key_type: KeyType) -> Result<KeyPair, rcgen::Error> {
    match key_type {
        KeyType::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        KeyType::P384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
        KeyType::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        KeyType::Rsa3072 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072),
        KeyType::Rsa4096 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boringssl_reads_them() {
        for (key_type, bits) in [
            (KeyType::P256, 256),
            (KeyType::P384, 384),
            (KeyType::Rsa2048, 2048),
            (KeyType::Rsa3072, 3072),
        ] {
            let key = generate(key_type).unwrap();
            let pem = key.serialize_pem();
            let read = boring::pkey::PKey::private_key_from_pem(pem.as_bytes()).unwrap();
            assert_eq!(read.bits(), bits, "{key_type:?}");
            // And we read it back for a resumed order.
            assert!(KeyPair::from_pem(&pem).is_ok());
        }
    }
}
