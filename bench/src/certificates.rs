//! Distinct P-256 pairs, made in parallel: leaf and intermediate, as a CA hands them out.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// Signs everything that one run needs.
pub struct Authority {
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

/// One certificate with its key, in PEM.
pub struct Pair {
    pub chain: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Authority {
        let root = CertifiedIssuer::self_signed(params("bench root"), key()).expect("a root");
        let intermediate =
            CertifiedIssuer::signed_by(params("bench intermediate"), key(), &root).expect("signed");
        Authority { intermediate }
    }

    pub fn issue(&self, name: &str) -> Pair {
        let key = key();
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        #[expect(
            clippy::disallowed_methods,
            reason = "a measurement has no other clock"
        )]
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::HOUR;
        params.not_after = now + time::Duration::days(90);
        let leaf = params.signed_by(&key, &self.intermediate).expect("signed");
        Pair {
            chain: leaf.pem() + &self.intermediate.pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Authority::new()
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// The name of the certificate with this number.
pub fn name(number: usize) -> String {
    format!("host-{number:06}.bench.test")
}

/// Where its files are: a thousand to a folder.
pub fn files(root: &Path, number: usize) -> (PathBuf, PathBuf) {
    let folder = root.join(format!("{:03}", number / 1000));
    let name = name(number);
    (
        folder.join(format!("{name}.crt")),
        folder.join(format!("{name}.key")),
    )
}

/// For the owner alone, as keys are kept: Perennial warns of others, and would keep the warnings.
fn write(path: &Path, content: impl AsRef<[u8]>) {
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(path);
    file.and_then(|mut file| file.write_all(content.as_ref()))
        .expect("written");
}

/// Writes the pairs number 0 to `count`, on all cores.
pub fn write_all(authority: &Authority, root: &Path, count: usize) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for folder in 0..count.div_ceil(1000) {
        fs::create_dir_all(root.join(format!("{folder:03}"))).expect("a folder");
    }
    std::thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || {
                for number in (first..count).step_by(threads) {
                    let pair = authority.issue(&name(number));
                    let (certificate, key) = files(root, number);
                    write(&certificate, &pair.chain);
                    write(&key, &pair.key);
                }
            });
        }
    });
}

/// Writes one pair for a name, or for `*.` and a domain, into a folder.
pub fn write_one(authority: &Authority, folder: &Path, name: &str) {
    fs::create_dir_all(folder).expect("a folder");
    let pair = authority.issue(name);
    write(&folder.join("one.crt"), &pair.chain);
    write(&folder.join("one.key"), &pair.key);
}

/// Puts a new pair in the place of another: each file whole, by a rename.
pub fn replace(root: &Path, number: usize, pair: &Pair) {
    let (certificate, key) = files(root, number);
    for (path, content) in [(key, &pair.key), (certificate, &pair.chain)] {
        let temporary = path.with_extension("new");
        write(&temporary, content);
        fs::rename(temporary, path).expect("renamed");
    }
}
