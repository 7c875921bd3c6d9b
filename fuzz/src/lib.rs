//! What the fuzz targets share: the form of their inputs, the inputs that they begin with, and
//! certificates.

pub mod handshake;
pub mod hello;
pub mod input;
pub mod reference;
pub mod server;

use std::path::Path;
use std::sync::Arc;

use perennial::certificate::certified_key::CertifiedKey;
use perennial::certificate::material::Material;
use perennial::certificate::table::{Choice, Claim, LiveCertificate, SourceKind, Standing};
use rcgen::{CertificateParams, KeyPair};
use time::OffsetDateTime;
use time::macros::datetime;

/// A target that finds this variable writes its first inputs into the directory that it names, and
/// ends. They are made anew each time, so that no binary file has to be kept.
const SEEDS: &str = "PERENNIAL_FUZZ_SEEDS";

/// The time at which everything happens.
pub const NOW: OffsetDateTime = datetime!(2027-01-01 12:00 UTC);

/// Writes the seeds and ends the process, if that is what it was started for.
pub fn write_seeds(seeds: impl FnOnce() -> Vec<Vec<u8>>) {
    let Some(directory) = std::env::var_os(SEEDS) else {
        return;
    };
    let directory = Path::new(&directory);
    std::fs::create_dir_all(directory).unwrap();
    for (number, seed) in seeds().into_iter().enumerate() {
        std::fs::write(directory.join(format!("seed-{number}")), seed).unwrap();
    }
    std::process::exit(0);
}

/// A self-signed certificate for `name` and its key.
pub fn pair(
    name: &str,
    algorithm: &'static rcgen::SignatureAlgorithm,
) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = NOW - time::Duration::DAY;
    params.not_after = NOW + time::Duration::days(90);
    (params.self_signed(&key).unwrap(), key)
}

/// A certificate in service. What name it has is of no concern to the table.
pub fn live(name: &str) -> Arc<LiveCertificate> {
    let (certificate, key) = pair(name, &rcgen::PKCS_ECDSA_P256_SHA256);
    let text = certificate.pem() + &key.serialize_pem();
    let material = Material::parse(text.as_bytes(), None).unwrap();
    Arc::new(LiveCertificate {
        key: CertifiedKey::from_materials(&material, &material).unwrap(),
        source: SourceKind::File,
        path: Path::new(name).into(),
        private_key: None,
        loaded_at: NOW,
        changed_at: NOW,
        asked: Default::default(),
    })
}

/// A choice of this certificate.
pub fn choice(best: &Arc<LiveCertificate>, valid: bool, on_disk: bool) -> Choice {
    Choice {
        best: best.clone(),
        alternate: None,
        standing: Standing {
            valid,
            on_disk,
            claim: Claim::Ordinary,
        },
        file_valid_until: None,
        file_due_at: None,
        file_known: true,
    }
}
