//! What a ClientHello gets, by the listener's own choice: raw bytes, and well-formed hellos with any
//! server name and any protocols, of which the answer has to be that of the reference.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use perennial_fuzz::input::{byte, join, part};
use perennial_fuzz::server::{Answer, CHALLENGED, LOCAL, Server};
use perennial_fuzz::{hello, reference, write_seeds};

static SERVER: LazyLock<Server> = LazyLock::new(Server::new);

/// Bits before the input.
const RAW: u8 = 1;
const WITHOUT_NAME: u8 = 2;
const WITHOUT_PROTOCOLS: u8 = 4;

/// What a TLS-ALPN-01 validation offers (RFC 8737 section 4).
const ACME_TLS: &[u8] = b"\x0aacme-tls/1";

/// BoringSSL refuses longer server names by itself, empty ones and such with a NUL.
const MAX_SERVER_NAME: usize = 255;

fuzz_target!(init: write_seeds(seeds), |data: &[u8]| {
    let mut rest = data;
    let bits = byte(&mut rest);
    if bits & RAW != 0 {
        SERVER.answer(rest);
        return;
    }
    let name = part(&mut rest);
    let name = (bits & WITHOUT_NAME == 0).then_some(name);
    let protocols = (bits & WITHOUT_PROTOCOLS == 0).then_some(rest);
    if name.is_some_and(|name| name.len() > 1024) || rest.len() > 1024 {
        return;
    }
    let answer = SERVER.answer(&hello::record(name, protocols));
    let is_odd = |name: &[u8]| name.is_empty() || name.len() > MAX_SERVER_NAME || name.contains(&0);
    if name.is_some_and(is_odd) || protocols.is_some_and(|list| !is_list(list)) {
        let is_one = |protocols: &[u8]| protocols == ACME_TLS;
        let expected_challenge = answer == Answer::Challenge && !protocols.is_some_and(is_one);
        assert!(!expected_challenge, "{name:?} {protocols:?}");
        return;
    }
    let text = name.map(std::str::from_utf8).and_then(Result::ok);
    assert_eq!(answer, expected(text, protocols), "{text:?} {protocols:?}");
});

/// Whether this is a list of protocols, none of them empty, with at least one in it.
fn is_list(mut list: &[u8]) -> bool {
    let mut any = false;
    while let Some((&length, rest)) = list.split_first() {
        match rest.get(usize::from(length)..) {
            Some(rest) if length > 0 => list = rest,
            _ => return false,
        }
        any = true;
    }
    any
}

fn expected(server_name: Option<&str>, protocols: Option<&[u8]>) -> Answer {
    if protocols == Some(ACME_TLS) {
        return match server_name {
            Some(name) if name.eq_ignore_ascii_case(CHALLENGED) => Answer::Challenge,
            _ => Answer::Refused,
        };
    }
    let host = match server_name {
        Some(text) => reference::host(text),
        None => Some(reference::Host::Address(LOCAL)),
    };
    let found = host.and_then(|host| reference::look_up(&SERVER.rows, &host));
    found.map_or(Answer::Refused, Answer::Certificate)
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for name in [
        "a.test",
        "A.TEST.",
        "x.b.test",
        "y.b.test",
        "192.0.2.1",
        "2001:db8::1",
        "no",
        CHALLENGED,
    ] {
        for protocols in [&b"\x02h2\x08http/1.1"[..], ACME_TLS, b""] {
            let absent = if protocols.is_empty() {
                WITHOUT_PROTOCOLS
            } else {
                0
            };
            seeds.push(join(absent, [name.as_bytes(), protocols]));
        }
        let record = hello::record(Some(name.as_bytes()), Some(b"\x02h2"));
        seeds.push(join(RAW, [&record]));
    }
    seeds.push(join(WITHOUT_NAME, [b"", b"\x02h2"]));
    seeds.push(join(RAW, [&hello::record(None, None)]));
    seeds
}
