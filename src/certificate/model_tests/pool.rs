//! The certificates of the model, made once, and what a text made of them holds.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, OnceLock};

use boring::sha::sha256;
use boring::ssl::{
    HandshakeError, MidHandshakeSslStream, Ssl, SslContext, SslMethod, SslSignatureAlgorithm,
    SslStream, SslVerifyMode,
};
use boring::x509::X509;
use rcgen::{CertificateParams, KeyPair, SerialNumber};
use time::{Duration, OffsetDateTime};

use crate::certificate::certified_key::{CertifiedKey, Fingerprint};
use crate::certificate::testing;

/// What certificates are made for. Hosts below the wildcards are asked for, too.
pub const NAMES: [&str; 5] = ["a.test", "b.test", "*.test", "c.b.test", "*.b.test"];

const ITEMS: usize = 40;
/// Fewer than items: a renewal may keep its key.
const KEYS: usize = 14;

/// In days from the start of the test: expired, about to, in the middle, not yet, always.
const VALIDITIES: [(i64, i64); 6] = [
    (-300, -120),
    (-60, 30),
    (-10, 80),
    (5, 95),
    (60, 300),
    (-400, 400),
];

/// A certificate and its key.
pub struct Item {
    pub leaf: String,
    /// Which of the pool's keys is its own.
    pub key: usize,
    pub fingerprint: Fingerprint,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

pub struct Pool {
    pub base: OffsetDateTime,
    pub items: Vec<Item>,
    /// PEM.
    pub keys: Vec<String>,
    pub intermediate: String,
    /// What was found out before, by checksum.
    known: Mutex<HashMap<[u8; 32], Facts>>,
}

/// What a file holds, by a slow and obvious reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The item, and how long its chain is.
    pub leaf: Option<Identity>,
    pub keys: Vec<usize>,
    /// Half a PEM block, or nonsense in one.
    pub broken: bool,
}

/// A certificate of the pool as a file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    pub item: usize,
    pub chain_length: usize,
}

impl Pool {
    /// The one pool, made when it is first asked for.
    pub fn get() -> &'static Pool {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| Pool::new(crate::clock::now()))
    }

    fn new(base: OffsetDateTime) -> Pool {
        let issuer = testing::intermediate();
        let pairs: Vec<KeyPair> = (0..KEYS)
            .map(|n| match n % 4 {
                0 => KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
                _ => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
            })
            .collect();
        let items = (0..ITEMS).map(|n| {
            let key = n % KEYS;
            let first = n % NAMES.len();
            let count = 1 + n / NAMES.len() % 3;
            let names = (0..count).map(|more| NAMES[(first + 2 * more) % NAMES.len()].to_owned());
            let mut params = CertificateParams::new(names.collect::<Vec<_>>()).unwrap();
            let (start, end) = VALIDITIES[n / 2 % VALIDITIES.len()];
            params.serial_number = Some(SerialNumber::from(n as u64 + 1));
            // A validity counts whole seconds.
            let base = base.replace_nanosecond(0).unwrap() + Duration::minutes(n as i64);
            params.not_before = base + Duration::days(start);
            params.not_after = base + Duration::days(end);
            let leaf = params.signed_by(&pairs[key], &issuer).unwrap();
            Item {
                leaf: leaf.pem(),
                key,
                fingerprint: Fingerprint(sha256(leaf.der())),
                not_before: params.not_before,
                not_after: params.not_after,
            }
        });
        Pool {
            base,
            items: items.collect(),
            keys: pairs.iter().map(KeyPair::serialize_pem).collect(),
            intermediate: issuer.pem(),
            known: Mutex::default(),
        }
    }

    /// What a file with these bytes holds.
    pub fn facts(&self, bytes: &[u8]) -> Facts {
        let mut known = self.known.lock().unwrap();
        let facts = known.entry(sha256(bytes));
        facts.or_insert_with(|| self.classify(bytes)).clone()
    }

    /// Known blocks are taken out of the text one by one, and whatever then still looks like a
    /// block is none.
    fn classify(&self, bytes: &[u8]) -> Facts {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Facts::default();
        };
        let mut rest = text.to_owned();
        let mut take = |block: &str| {
            // The last line of a file may lack its end.
            let block = block.trim_end();
            let found = rest.contains(block);
            rest = rest.replace(block, "");
            found
        };
        let leaf = (0..self.items.len()).find(|&n| take(&self.items[n].leaf));
        let has_intermediate = take(&self.intermediate);
        let keys = (0..self.keys.len()).filter(|&n| take(&self.keys[n]));
        let keys = keys.collect();
        if rest.contains("-----BEGIN") {
            return Facts {
                broken: true,
                ..Facts::default()
            };
        }
        Facts {
            leaf: leaf.map(|item| Identity {
                item,
                chain_length: 1 + usize::from(has_intermediate),
            }),
            keys,
            broken: false,
        }
    }

    pub fn identity(&self, key: &CertifiedKey) -> Identity {
        let item = self
            .items
            .iter()
            .position(|item| item.fingerprint == key.fingerprint());
        Identity {
            item: item.expect("what is served is from the pool"),
            chain_length: key.chain_length(),
        }
    }
}

/// The leaf that a client sees, and for which the server showed that it has the key: a whole
/// handshake in memory.
pub fn shown(key: &CertifiedKey) -> Fingerprint {
    let mut context = SslContext::builder(SslMethod::tls()).unwrap();
    context
        .set_verify_algorithm_prefs(&[
            SslSignatureAlgorithm::ECDSA_SECP256R1_SHA256,
            SslSignatureAlgorithm::ED25519,
        ])
        .unwrap();
    context.set_verify(SslVerifyMode::NONE);
    let context = context.build();
    let mut server = Ssl::new(&context).unwrap();
    server.add_credential(key.credential()).unwrap();
    let client = Ssl::new(&context).unwrap();
    let (there, back) = (Queue::default(), Queue::default());
    let mut client = client
        .setup_connect(Pipe {
            from: back.clone(),
            to: there.clone(),
        })
        .handshake();
    let mut server = server
        .setup_accept(Pipe {
            from: there,
            to: back,
        })
        .handshake();
    // Each side has something to say at most three times.
    for _ in 0..3 {
        client = client.or_else(go_on);
        server = server.or_else(go_on);
    }
    let leaf: X509 = client.unwrap().ssl().peer_certificate().unwrap();
    Fingerprint(sha256(&leaf.to_der().unwrap()))
}

type Progress = Result<SslStream<Pipe>, HandshakeError<Pipe>>;

fn go_on(error: HandshakeError<Pipe>) -> Progress {
    match error {
        HandshakeError::WouldBlock(stream) => MidHandshakeSslStream::handshake(stream),
        error => Err(error),
    }
}

type Queue = Arc<Mutex<VecDeque<u8>>>;

/// One end of a connection in memory.
#[derive(Debug)]
struct Pipe {
    from: Queue,
    to: Queue,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.from.lock().unwrap().read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
