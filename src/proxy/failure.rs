//! What went wrong with a request: whose fault it is, the status for the client, and the reason in
//! words for the log.

use std::io;

use http::StatusCode;
use pingora::{Error, ErrorType};

use super::files::FileError;
use super::forward_auth::AuthError;
use super::upstream::Busy;
use crate::message::{BodyError, HeadError};

/// Who failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Client,
    Upstream,
    /// Neither: this server, or its disk.
    Server,
}

/// What ended a request.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// Nobody to ask. `status`: what the last failed dial means, or 503 if there was none.
    #[error("{reason}")]
    NoUpstream { status: StatusCode, reason: String },
    /// The upstream does not take WebSockets: neither over HTTP/2, as it is asked, nor otherwise. It is
    /// well all the same.
    #[error("the upstream takes no WebSockets over HTTP/2 (RFC 8441), and {0}")]
    NoWebSocket(String),
    /// Each has as many requests as it may have.
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error(transparent)]
    File(#[from] FileError),
    /// Nobody says whether the request is let in.
    #[error(transparent)]
    Auth(#[from] AuthError),
}

/// What is wrong with the client's side of an exchange.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("connection closed")]
    Gone,
    #[error("reading failed: {0}")]
    Read(#[source] io::Error),
    #[error("writing failed: {0}")]
    Write(#[source] io::Error),
    #[error("malformed message: {0}")]
    Body(#[from] BodyError),
    #[error("body larger than is taken")]
    BodyTooLarge,
    #[error("no body in time")]
    BodyTimeout,
    #[error("no progress in time")]
    WriteTimeout,
    #[error("the body comes more slowly than min_request_rate")]
    SlowBody,
    #[error("the response is taken more slowly than min_response_rate")]
    SlowReader,
    #[error("HTTP/2 failed: {0}")]
    Http2(#[from] h2::Error),
}

/// What is wrong with the upstream's.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("connection closed")]
    Closed,
    #[error("reading failed: {0}")]
    Read(#[source] io::Error),
    #[error("writing failed: {0}")]
    Write(#[source] io::Error),
    #[error("malformed message: {0}")]
    Head(#[from] HeadError),
    #[error("malformed message: {0}")]
    Body(#[from] BodyError),
    #[error("a switch of protocols that nobody asked for")]
    Switch,
    #[error("too many interim responses")]
    Interim,
    #[error("no answer in time")]
    Silent,
    #[error("no whole answer in the time that the route gives")]
    Overdue,
    #[error("HTTP/2 failed: {0}")]
    Http2(#[from] h2::Error),
    #[error("the request cannot be said in HTTP/2: {0}")]
    Unsayable(String),
}

impl UpstreamError {
    /// Whether the connection turned out to be over.
    pub fn is_closed(&self) -> bool {
        use UpstreamError::{Closed, Read, Write};
        matches!(self, Closed | Read(_) | Write(_))
    }
}

impl Failure {
    /// `None`: the client is gone and nobody is left to answer.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Failure::Client(ClientError::Body(_)) => Some(StatusCode::BAD_REQUEST),
            Failure::Client(ClientError::BodyTooLarge) => Some(StatusCode::PAYLOAD_TOO_LARGE),
            Failure::Client(ClientError::BodyTimeout | ClientError::SlowBody) => {
                Some(StatusCode::REQUEST_TIMEOUT)
            }
            Failure::Client(_) => None,
            Failure::Upstream(UpstreamError::Silent | UpstreamError::Overdue) => {
                Some(StatusCode::GATEWAY_TIMEOUT)
            }
            Failure::Upstream(_) | Failure::NoWebSocket(_) => Some(StatusCode::BAD_GATEWAY),
            Failure::NoUpstream { status, .. } => Some(*status),
            Failure::Busy(_) => Some(StatusCode::SERVICE_UNAVAILABLE),
            Failure::File(error) => Some(error.status()),
            Failure::Auth(error) => Some(error.status()),
        }
    }

    pub fn fault(&self) -> Fault {
        match self {
            Failure::Client(_) => Fault::Client,
            Failure::Upstream(_)
            | Failure::NoWebSocket(_)
            | Failure::NoUpstream { .. }
            | Failure::Busy(_) => Fault::Upstream,
            Failure::File(_) | Failure::Auth(_) => Fault::Server,
        }
    }
}

/// The kind of an error of Pingora's and its root cause, for the log alone: it may name paths and
/// addresses.
pub fn in_words(error: &Error) -> String {
    let kind = kind(error.etype());
    match root(error) {
        Some(root) if !root.is_empty() => format!("{kind}: {root}"),
        _ => kind.to_owned(),
    }
}

/// The innermost text. Contexts further out repeat the address; but that of a TLS error is all
/// there is, its cause being the local address.
fn root(error: &Error) -> Option<String> {
    let context = || error.context.as_ref().map(|context| context.to_string());
    let cause = error.cause.as_ref();
    let inner = cause.and_then(|cause| cause.downcast_ref::<Box<Error>>());
    match (error.etype(), inner, cause) {
        (_, Some(inner), _) => root(inner),
        (ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert, ..) | (_, _, None) => context(),
        (_, None, Some(cause)) => Some(cause.to_string()),
    }
}

fn kind(kind: &ErrorType) -> &'static str {
    match kind {
        ErrorType::ConnectTimedout => "no connection in time",
        ErrorType::ConnectRefused => "connection refused",
        ErrorType::ConnectNoRoute => "no route",
        ErrorType::ConnectError | ErrorType::SocketError => "cannot connect",
        ErrorType::TLSHandshakeFailure | ErrorType::HandshakeError => "TLS handshake failed",
        ErrorType::TLSHandshakeTimedout => "no TLS handshake in time",
        ErrorType::InvalidCert => "certificate refused",
        _ => "cannot connect",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_says_who_failed_and_how() {
        let unavailable = Failure::NoUpstream {
            status: StatusCode::SERVICE_UNAVAILABLE,
            reason: String::new(),
        };
        for (failure, status, fault) in [
            (UpstreamError::Closed.into(), Some(502), Fault::Upstream),
            (UpstreamError::Switch.into(), Some(502), Fault::Upstream),
            (UpstreamError::Silent.into(), Some(504), Fault::Upstream),
            (unavailable, Some(503), Fault::Upstream),
            (ClientError::BodyTimeout.into(), Some(408), Fault::Client),
            (
                ClientError::Body(BodyError::ChunkSize).into(),
                Some(400),
                Fault::Client,
            ),
            (ClientError::Gone.into(), None, Fault::Client),
            (ClientError::WriteTimeout.into(), None, Fault::Client),
        ] as [(Failure, _, _); 8]
        {
            let found = failure.status().map(|status| status.as_u16());
            assert_eq!((found, failure.fault()), (status, fault), "{failure:?}");
        }
    }

    #[test]
    fn the_reason_is_the_root_cause() {
        let io = std::io::Error::other("Connection refused (os error 111)");
        let inner = Error::because(ErrorType::ConnectRefused, "inner", io);
        let outer = inner.more_context("Fail to connect to addr: 192.0.2.1:80");
        assert_eq!(
            in_words(&outer),
            "connection refused: Connection refused (os error 111)"
        );
        assert_eq!(
            in_words(&Error::new(ErrorType::ConnectTimedout)),
            "no connection in time"
        );
    }
}
