//! A TLS server as the listener makes it, with a table of its own.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use boring::ssl::{HandshakeError, SslAcceptor};
use perennial::acme::challenges::{ChallengeGuard, Challenges};
use perennial::certificate::name::Name;
use perennial::certificate::table::{LiveCertificate, Table, live_table};
use perennial::listener::client_auth::ClientAuthTable;
use perennial::listener::tickets::SessionTickets;
use perennial::listener::tls::{self, Outcome, SessionPolicy, Sessions};

use crate::reference::{self, Row};
use crate::{NOW, choice, live};

/// The address that every client comes to.
pub const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// For which a challenge is under way.
pub const CHALLENGED: &str = "new.test";

const NAMES: [&str; 6] = [
    "a.test",
    "*.b.test",
    "x.b.test",
    "*.test",
    "192.0.2.1",
    "2001:db8::1",
];

pub struct Server {
    acceptor: SslAcceptor,
    pub rows: Vec<Row>,
    certificates: Vec<Arc<LiveCertificate>>,
    _challenge: ChallengeGuard,
}

/// What a client was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Certificate(usize),
    Challenge,
    Refused,
    /// The ClientHello was not understood.
    Nothing,
}

impl Server {
    pub fn new() -> Server {
        let mut table = Table::new(None);
        let (mut rows, mut certificates) = (Vec::new(), Vec::new());
        for text in NAMES {
            let name: Name = text.parse().unwrap();
            let live = live("any.test");
            table.set(&name, Some(choice(&live, true, true)));
            rows.push(Row {
                name: reference::of_name(&name),
                standing: (true, true),
                certificate: certificates.len(),
            });
            certificates.push(live);
        }
        let (publisher, reader) = live_table(None);
        publisher.publish(table);
        publisher.first_load_done();
        let challenges = Challenges::new();
        let challenged: Name = CHALLENGED.parse().unwrap();
        let challenge = challenges.provide_tls_alpn01(&challenged, &[7; 32], NOW);
        let rotation = std::time::Duration::from_secs(3600);
        let sessions = Sessions {
            tickets: SessionTickets::new(rotation, NOW).unwrap(),
            policy: Arc::new(ArcSwap::from_pointee(SessionPolicy {
                resume_after_swap: false,
                client_auth: ClientAuthTable::default(),
            })),
        };
        Server {
            acceptor: tls::acceptor(tls::Certificates::new(reader, challenges), sessions).unwrap(),
            rows,
            certificates,
            _challenge: challenge.unwrap(),
        }
    }

    /// What becomes of a client that sends these bytes and then nothing more.
    pub fn answer(&self, bytes: &[u8]) -> Answer {
        let ssl = tls::new_handshake(&self.acceptor, LOCAL, false).unwrap();
        let client = Client { sends: bytes };
        match ssl.setup_accept(client).handshake() {
            Ok(stream) => self.outcome(stream.ssl()),
            Err(HandshakeError::WouldBlock(stream) | HandshakeError::Failure(stream)) => {
                self.outcome(stream.ssl())
            }
            Err(HandshakeError::SetupFailure(_)) => Answer::Nothing,
        }
    }

    fn outcome(&self, ssl: &boring::ssl::SslRef) -> Answer {
        match tls::outcome(ssl) {
            Outcome::Served => {
                let served = tls::served(ssl).unwrap();
                let same = |live: &Arc<LiveCertificate>| Arc::ptr_eq(live, &served);
                Answer::Certificate(self.certificates.iter().position(same).unwrap())
            }
            Outcome::Challenge => Answer::Challenge,
            Outcome::Refused => Answer::Refused,
            Outcome::Open => Answer::Nothing,
        }
    }
}

impl Default for Server {
    fn default() -> Server {
        Server::new()
    }
}

/// A client that has sent all that it ever sends.
#[derive(Debug)]
struct Client<'a> {
    sends: &'a [u8],
}

impl Read for Client<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.sends.read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for Client<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
