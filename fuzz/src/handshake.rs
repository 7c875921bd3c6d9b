//! A whole handshake in memory.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, LazyLock, Mutex};

use boring::sha::sha256;
use boring::ssl::{
    HandshakeError, MidHandshakeSslStream, Ssl, SslContext, SslMethod, SslSignatureAlgorithm,
    SslStream, SslVerifyMode,
};
use perennial::certificate::certified_key::{CertifiedKey, Fingerprint};

/// Both ends of the connection. It accepts everything that TLS has.
static CONTEXT: LazyLock<SslContext> = LazyLock::new(|| {
    let mut context = SslContext::builder(SslMethod::tls()).unwrap();
    context.set_verify(SslVerifyMode::NONE);
    context
        .set_verify_algorithm_prefs(&[
            SslSignatureAlgorithm::ECDSA_SECP256R1_SHA256,
            SslSignatureAlgorithm::ECDSA_SECP384R1_SHA384,
            SslSignatureAlgorithm::ECDSA_SECP521R1_SHA512,
            SslSignatureAlgorithm::ED25519,
            SslSignatureAlgorithm::RSA_PSS_RSAE_SHA256,
            SslSignatureAlgorithm::RSA_PSS_RSAE_SHA384,
            SslSignatureAlgorithm::RSA_PSS_RSAE_SHA512,
        ])
        .unwrap();
    context.build()
});

/// The leaf that a client sees, and for which the server showed that it has the key.
pub fn shown(key: &CertifiedKey) -> Result<Fingerprint, String> {
    let mut server = Ssl::new(&CONTEXT).unwrap();
    server.add_credential(key.credential()).unwrap();
    let client = Ssl::new(&CONTEXT).unwrap();
    let (there, back) = (Queue::default(), Queue::default());
    let mut client = client.setup_connect(Pipe::new(&back, &there)).handshake();
    let mut server = server.setup_accept(Pipe::new(&there, &back)).handshake();
    // Each side has something to say at most three times.
    for _ in 0..3 {
        client = client.or_else(go_on);
        server = server.or_else(go_on);
    }
    let server = server.err().map(|error| format!("server: {error:?}"));
    let client = client.map_err(|error| format!("client: {error:?}, {server:?}"))?;
    let leaf = client.ssl().peer_certificate();
    let leaf = leaf
        .and_then(|leaf| leaf.to_der().ok())
        .ok_or("no certificate")?;
    Ok(Fingerprint(sha256(&leaf)))
}

fn go_on(error: HandshakeError<Pipe>) -> Result<SslStream<Pipe>, HandshakeError<Pipe>> {
    match error {
        HandshakeError::WouldBlock(stream) => MidHandshakeSslStream::handshake(stream),
        error => Err(error),
    }
}

type Queue = Arc<Mutex<VecDeque<u8>>>;

/// One end of the connection.
#[derive(Debug)]
struct Pipe {
    from: Queue,
    to: Queue,
}

impl Pipe {
    fn new(from: &Queue, to: &Queue) -> Pipe {
        Pipe {
            from: from.clone(),
            to: to.clone(),
        }
    }
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
