//! Asking ourselves where a CA would ask: the challenge's path on port 80, a handshake for
//! `acme-tls/1` on port 443. The answers are real ones, for a token that no CA knows.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration as StdDuration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

use super::{Check, Topic};
use crate::acme::account::blocking;
use crate::acme::challenges::{Challenges, challenge_server_name};
use crate::acme::order::challenge_name;
use crate::certificate::name::Name;
use crate::clock;
use crate::config::ChallengeType;

/// Where CAs connect to (RFC 8555 section 8.3, RFC 8737 section 3).
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;
/// One step of one exchange with ourselves.
const STEP: StdDuration = StdDuration::from_secs(2);
/// A name has a few addresses; a CA tries no more than two.
const MAX_ADDRESSES: usize = 4;
const MAX_ANSWER_BYTES: usize = 16 << 10;
const ACME_TLS: &[u8] = b"acme-tls/1";
/// The DER of `id-pe-acmeIdentifier` (RFC 8737 section 6.1).
const ACME_IDENTIFIER: [u8; 10] = [0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x01, 0x1f];

/// Where nobody here could answer.
pub(super) fn not_asked() -> Check {
    Check::warning(
        Topic::Reachable,
        "not tried: no running perennial answers at its admin API",
        "start it, then ask again",
    )
}

/// Whether this process is reached at each address, by one of the challenges at least.
pub(super) async fn check(
    answers: &Challenges,
    name: &Name,
    addresses: &[IpAddr],
    challenges: &[ChallengeType],
) -> Check {
    let mut failed = Vec::new();
    let mut reached = Vec::new();
    let asked = addresses.iter().take(MAX_ADDRESSES);
    let each = asked.map(|ip| at(answers, name, *ip, challenges));
    for (ip, outcomes) in futures_util::future::join_all(each).await {
        match outcomes.iter().find(|(_, outcome)| outcome.is_ok()) {
            Some((kind, _)) => reached.push(format!("{ip} by {}", challenge_name(*kind))),
            None => {
                let causes = outcomes.iter().filter_map(|(kind, outcome)| {
                    let cause = outcome.as_ref().err()?;
                    Some(format!("{} at {ip}: {cause}", challenge_name(*kind)))
                });
                failed.push(causes.collect::<Vec<_>>().join("; "));
            }
        }
    }
    judge(&reached, &failed)
}

fn judge(reached: &[String], failed: &[String]) -> Check {
    let remedy = "open port 80 or 443 from outside to this process; if only this host cannot \
                  reach its own public address (a router without hairpin NAT), nothing is wrong";
    match (reached.is_empty(), failed.is_empty()) {
        (_, true) => Check::ok(Topic::Reachable, format!("reached {}", reached.join(", "))),
        (false, false) => Check::warning(
            Topic::Reachable,
            format!(
                "reached {}, but not {}",
                reached.join(", "),
                failed.join("; ")
            ),
            "CAs try IPv6 first where there is an AAAA record: make every address lead here",
        ),
        (true, false) => Check::fails(Topic::Reachable, failed.join("; "), remedy),
    }
}

type Outcomes = Vec<(ChallengeType, Result<(), String>)>;

/// One address, by each challenge that connects to it.
async fn at(
    answers: &Challenges,
    name: &Name,
    ip: IpAddr,
    challenges: &[ChallengeType],
) -> (IpAddr, Outcomes) {
    let has = |kind: ChallengeType| challenges.contains(&kind);
    let http = async {
        match has(ChallengeType::Http01) {
            true => Some((ChallengeType::Http01, http01(answers, name, ip).await)),
            false => None,
        }
    };
    let tls = async {
        match has(ChallengeType::TlsAlpn01) {
            true => Some((
                ChallengeType::TlsAlpn01,
                tls_alpn01(answers, name, ip).await,
            )),
            false => None,
        }
    };
    let (http, tls) = tokio::join!(http, tls);
    (ip, tls.into_iter().chain(http).collect())
}

async fn http01(answers: &Challenges, name: &Name, ip: IpAddr) -> Result<(), String> {
    let token = format!("preflight-{:032x}", rand::random::<u128>());
    let expected = format!("{token}.{:032x}", rand::random::<u128>());
    let _answer = answers.provide_http01(&token, &expected);
    answers.known_everywhere().await;
    let host = match name {
        Name::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
        name => name.to_string(),
    };
    blocking(move || {
        let mut stream = connect(SocketAddr::new(ip, HTTP_PORT))?;
        let request = format!(
            "GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: {host}\r\n\
             User-Agent: perennial/{}\r\nConnection: close\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        );
        let text = |error: std::io::Error| error.to_string();
        stream.write_all(request.as_bytes()).map_err(text)?;
        let mut bytes = Vec::new();
        stream
            .take(MAX_ANSWER_BYTES as u64)
            .read_to_end(&mut bytes)
            .map_err(text)?;
        is_answer(&String::from_utf8_lossy(&bytes), &expected)
    })
    .await
}

/// Whether it is our answer, or whose else's.
fn is_answer(response: &str, expected: &str) -> Result<(), String> {
    let status = response.lines().next().unwrap_or_default();
    let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    if status.contains(" 200 ") && body.trim_end().ends_with(expected) {
        return Ok(());
    }
    let mut fields = response.lines().filter_map(|line| line.split_once(':'));
    let location = fields.find(|(name, _)| name.eq_ignore_ascii_case("location"));
    Err(match location {
        Some((_, target)) => format!("somebody else answers, with a redirect to{target}"),
        None if status.is_empty() => "the connection was closed without an answer".to_owned(),
        None => format!("somebody else answers: {status}"),
    })
}

fn connect(to: SocketAddr) -> Result<TcpStream, String> {
    let connected = TcpStream::connect_timeout(&to, STEP).and_then(|stream| {
        stream.set_read_timeout(Some(STEP))?;
        stream.set_write_timeout(Some(STEP))?;
        Ok(stream)
    });
    connected.map_err(|error| format!("port {}: {error}", to.port()))
}

async fn tls_alpn01(answers: &Challenges, name: &Name, ip: IpAddr) -> Result<(), String> {
    let digest: [u8; 32] = rand::random();
    let answer = answers.probe_tls_alpn01(name, &digest, clock::now());
    let _answer = answer.map_err(|error| error.to_string())?;
    answers.known_everywhere().await;
    let server_name = challenge_server_name(name);
    blocking(move || {
        let mut stream = connect(SocketAddr::new(ip, HTTPS_PORT))?;
        let server_name = ServerName::try_from(server_name).map_err(|error| error.to_string())?;
        let config = Arc::new(config()?);
        let connection = ClientConnection::new(config, server_name);
        let mut connection = connection.map_err(|error| error.to_string())?;
        while connection.is_handshaking() {
            let done = connection.complete_io(&mut stream);
            done.map_err(|error| format!("port {HTTPS_PORT}: {error}"))?;
        }
        is_challenge(&connection)
    })
    .await
}

/// Whether a challenge's certificate came: ours, or that of an order that runs for the same name.
fn is_challenge(connection: &ClientConnection) -> Result<(), String> {
    let certificate = connection.peer_certificates().and_then(<[_]>::first);
    let has = |der: &CertificateDer<'_>| {
        let mut windows = der.windows(ACME_IDENTIFIER.len());
        windows.any(|window| window == ACME_IDENTIFIER)
    };
    match connection.alpn_protocol() == Some(ACME_TLS) && certificate.is_some_and(has) {
        true => Ok(()),
        false => Err("somebody else answers, who does not know acme-tls/1".to_owned()),
    }
}

fn config() -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let schemes = provider
        .signature_verification_algorithms
        .supported_schemes();
    let verifier = Arc::new(Curious { schemes });
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    Ok(config)
}

/// Challenge certificates are signed by themselves: what counts is what is in them, and nothing is
/// sent to whoever shows one.
#[derive(Debug)]
struct Curious {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Curious {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn whose_answer_it_is() {
        let answer = |text: &str| is_answer(text, "token.print");
        assert!(answer("HTTP/1.1 200 OK\r\nA: b\r\n\r\ntoken.print").is_ok());
        for (text, cause) in [
            ("HTTP/1.1 404 Not Found\r\n\r\n", "404"),
            ("HTTP/1.1 200 OK\r\n\r\n<html>", "200"),
            (
                "HTTP/1.1 301 M\r\nLocation: https://x.test/\r\n\r\n",
                "https://x.test/",
            ),
            ("", "closed"),
        ] {
            let error = answer(text).unwrap_err();
            assert!(error.contains(cause), "{error}");
        }
    }

    #[test]
    fn every_address_counts() {
        let some = ["192.0.2.1 by http-01".to_owned()];
        let bad = ["http-01 at 2001:db8::1: refused".to_owned()];
        assert_eq!(judge(&some, &[]).verdict, Verdict::Ok);
        assert_eq!(judge(&some, &bad).verdict, Verdict::Warning);
        assert_eq!(judge(&[], &bad).verdict, Verdict::Fails);
        assert!(
            !judge(&[], &bad).hopeless,
            "a look from inside may be wrong"
        );
    }
}
