//! One question to an upstream, and whether the answer is a good one.

use std::future::poll_fn;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, StatusCode};

use super::super::Target;
use crate::config::{CheckKind, HealthCheck, HttpCheck};
use crate::message::{BodyReader, HeadEnd, ResponseHead, Step};
use crate::proxy::address::Address;
use crate::proxy::connection::Connection;
use crate::proxy::relay::RESPONSE_LIMITS;
use crate::proxy::{dial, multiplexed};

/// A page that says how a server is has no more than that; the rest is not read.
const MAX_BODY: usize = 64 * 1024;

/// Whether any of its addresses answers as it should; else what was wrong with the last.
pub async fn probe(target: &Target, label: &str, check: &HealthCheck) -> Result<(), String> {
    let all = async {
        let addresses = match target.addresses().await {
            Some(addresses) => addresses.map_err(|error| error.to_string())?,
            None => return Ok(()),
        };
        let mut result = Err("it has no addresses".to_owned());
        for address in addresses.iter() {
            result = ask(address, label, check).await;
            if result.is_ok() {
                break;
            }
        }
        result
    };
    match tokio::time::timeout(check.timeout, all).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {:?}", check.timeout)),
    }
}

async fn ask(address: &Address, label: &str, check: &HealthCheck) -> Result<(), String> {
    let http = match &check.kind {
        CheckKind::Http(http) => http,
        CheckKind::Tcp => {
            let dialled = dial::socket(address, check.timeout).await;
            return dialled.map(drop).map_err(|error| error.to_string());
        }
    };
    let host = http.host.as_deref().unwrap_or_else(|| host_of(label));
    let (status, body) = match address.is_http2() {
        true => over_http2(address, host, check, http).await?,
        false => over_http1(address, host, check, http).await?,
    };
    judge(status, &body, http)
}

fn judge(status: StatusCode, body: &[u8], check: &HttpCheck) -> Result<(), String> {
    if !check.statuses.contains(status) {
        return Err(format!("it answers {}", status.as_u16()));
    }
    match &check.body {
        Some(text) if memchr::memmem::find(body, text.as_bytes()).is_none() => {
            Err(format!("its answer has no {text:?}"))
        }
        _ => Ok(()),
    }
}

/// What the upstream is called, without the scheme; a socket has no name.
fn host_of(label: &str) -> &str {
    if label.starts_with("unix:") {
        return "localhost";
    }
    label.split_once("://").map_or(label, |(_, host)| host)
}

async fn over_http1(
    address: &Address,
    host: &str,
    check: &HealthCheck,
    http: &HttpCheck,
) -> Result<(StatusCode, BytesMut), String> {
    let dialled = dial::dial(address, check.timeout, None).await;
    let mut connection = dialled.map_err(|error| error.to_string())?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: perennial-health-check\r\n\
         Accept: */*\r\nConnection: close\r\n\r\n",
        http.path
    );
    connection.output.extend_from_slice(request.as_bytes());
    let sent = poll_fn(|cx| connection.poll_flush(cx)).await;
    sent.map_err(|error| format!("writing failed: {error}"))?;
    let head = head(&mut connection).await?;
    let framing = head
        .framing(&Method::GET)
        .map_err(|error| error.to_string())?;
    let mut body = BytesMut::new();
    let mut reader = BodyReader::new(framing);
    // Without a text that is looked for the status is all.
    while http.body.is_some() && body.len() < MAX_BODY {
        let step = reader.step(&mut connection.input);
        match step.map_err(|error| error.to_string())? {
            Step::Data(length) => {
                body.extend_from_slice(&connection.input[..length]);
                connection.input.advance(length);
                reader.took(length);
            }
            Step::More if fill(&mut connection).await? => {}
            Step::More | Step::End => break,
        }
    }
    Ok((head.status, body))
}

async fn head(connection: &mut Connection) -> Result<ResponseHead, String> {
    let mut end = HeadEnd::default();
    loop {
        let found = end.find_in_response(&connection.input, &RESPONSE_LIMITS);
        let Some(length) = found.map_err(|error| error.to_string())? else {
            match fill(connection).await? {
                true => continue,
                false => return Err("it closes without an answer".to_owned()),
            }
        };
        let mut head = ResponseHead::default();
        let parsed = head.parse(&connection.input[..length], &RESPONSE_LIMITS);
        parsed.map_err(|error| error.to_string())?;
        connection.input.advance(length);
        match head.status.is_informational() {
            true => end = HeadEnd::default(),
            false => return Ok(head),
        }
    }
}

/// Whether there is more.
async fn fill(connection: &mut Connection) -> Result<bool, String> {
    let read = poll_fn(|cx| connection.poll_fill(cx)).await;
    let read = read.map_err(|error| format!("reading failed: {error}"))?;
    Ok(read > 0)
}

async fn over_http2(
    address: &Address,
    host: &str,
    check: &HealthCheck,
    http: &HttpCheck,
) -> Result<(StatusCode, BytesMut), String> {
    let failed = |error: h2::Error| error.to_string();
    let scheme = if address.is_tls() { "https" } else { "http" };
    let request = Request::get(format!("{scheme}://{host}{}", http.path))
        .header("user-agent", "perennial-health-check")
        .body(())
        .map_err(|error| error.to_string())?;
    let opened = multiplexed::open(address, check.timeout).await;
    let multiplexed::Opened {
        sender,
        driver: connection,
        ..
    } = opened.map_err(|error| error.to_string())?;
    let exchange = async move {
        let mut sender = sender.ready().await.map_err(failed)?;
        let (response, _): (_, h2::SendStream<Bytes>) =
            sender.send_request(request, true).map_err(failed)?;
        let mut response = response.await.map_err(failed)?;
        let mut body = BytesMut::new();
        while http.body.is_some() && body.len() < MAX_BODY {
            let Some(data) = response.body_mut().data().await else {
                break;
            };
            let data = data.map_err(failed)?;
            body.extend_from_slice(&data);
            let flow = response.body_mut().flow_control();
            flow.release_capacity(data.len()).map_err(failed)?;
        }
        Ok((response.status(), body))
    };
    tokio::select! {
        answer = exchange => answer,
        ended = connection => Err(match ended {
            Ok(()) => "it closes without an answer".to_owned(),
            Err(error) => error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_without_schemes() {
        for (label, host) in [
            ("a.test:80", "a.test:80"),
            ("https://a.test:443", "a.test:443"),
            ("h2c://[::1]:80", "[::1]:80"),
            ("unix:/run/a", "localhost"),
        ] {
            assert_eq!(host_of(label), host);
        }
    }
}
