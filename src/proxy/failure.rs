//! What an error of Pingora's means: the status for the client, whose fault it is, and the reason
//! in words for the log.

use http::StatusCode;
use pingora::{Error, ErrorSource, ErrorType};

/// Who failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Client,
    Upstream,
    /// Ours.
    Proxy,
}

/// The meaning of an error that ended a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// `None`: the client is gone and nobody is left to answer.
    pub status: Option<StatusCode>,
    pub fault: Fault,
}

impl Failure {
    pub fn of(error: &Error) -> Failure {
        let (status, fault) = match (error.etype(), error.esource()) {
            (ErrorType::HTTPStatus(code), _) => (
                Some(StatusCode::from_u16(*code).unwrap_or(StatusCode::BAD_GATEWAY)),
                Fault::Upstream,
            ),
            (kind, ErrorSource::Upstream) => (Some(upstream_status(kind)), Fault::Upstream),
            (kind, ErrorSource::Downstream) => (client_status(kind), Fault::Client),
            (_, ErrorSource::Internal | ErrorSource::Unset) => {
                (Some(StatusCode::INTERNAL_SERVER_ERROR), Fault::Proxy)
            }
        };
        Failure { status, fault }
    }
}

/// 504 if there was no answer in time, 502 if there was none that could be used.
pub fn upstream_status(kind: &ErrorType) -> StatusCode {
    match kind {
        ErrorType::ConnectTimedout
        | ErrorType::TLSHandshakeTimedout
        | ErrorType::ReadTimedout
        | ErrorType::WriteTimedout => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    }
}

fn client_status(kind: &ErrorType) -> Option<StatusCode> {
    match kind {
        ErrorType::ReadTimedout => Some(StatusCode::REQUEST_TIMEOUT),
        ErrorType::ReadError
        | ErrorType::WriteError
        | ErrorType::WriteTimedout
        | ErrorType::ConnectionClosed
        | ErrorType::H2Error
        | ErrorType::InvalidH2 => None,
        _ => Some(StatusCode::BAD_REQUEST),
    }
}

/// The kind of the error and its root cause, for the log alone: it may name paths and addresses.
pub fn reason(error: &Error) -> String {
    let kind = in_words(error.etype());
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

fn in_words(kind: &ErrorType) -> &'static str {
    match kind {
        ErrorType::ConnectTimedout => "no connection in time",
        ErrorType::ConnectRefused => "connection refused",
        ErrorType::ConnectNoRoute => "no route",
        ErrorType::ConnectError | ErrorType::SocketError => "cannot connect",
        ErrorType::TLSHandshakeFailure | ErrorType::HandshakeError => "TLS handshake failed",
        ErrorType::TLSHandshakeTimedout => "no TLS handshake in time",
        ErrorType::InvalidCert => "certificate refused",
        ErrorType::InvalidHTTPHeader | ErrorType::H1Error => "malformed message",
        ErrorType::H2Error | ErrorType::InvalidH2 | ErrorType::H2Downgrade => "HTTP/2 failed",
        ErrorType::ReadTimedout => "no answer in time",
        ErrorType::WriteTimedout => "no progress in time",
        ErrorType::ReadError => "reading failed",
        ErrorType::WriteError => "writing failed",
        ErrorType::ConnectionClosed => "connection closed",
        ErrorType::InternalError => "internal error",
        _ => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: ErrorType, source: ErrorSource) -> (Option<u16>, Fault) {
        let failure = Failure::of(&Error::create(kind, source, None, None));
        (failure.status.map(|status| status.as_u16()), failure.fault)
    }

    #[test]
    fn the_status_says_who_failed_and_how() {
        use ErrorSource::{Downstream, Internal, Unset, Upstream};
        for (kind, source, status, fault) in [
            (
                ErrorType::ConnectRefused,
                Upstream,
                Some(502),
                Fault::Upstream,
            ),
            (
                ErrorType::ConnectTimedout,
                Upstream,
                Some(504),
                Fault::Upstream,
            ),
            (
                ErrorType::ReadTimedout,
                Upstream,
                Some(504),
                Fault::Upstream,
            ),
            (
                ErrorType::ConnectionClosed,
                Upstream,
                Some(502),
                Fault::Upstream,
            ),
            (
                ErrorType::InvalidHTTPHeader,
                Upstream,
                Some(502),
                Fault::Upstream,
            ),
            (
                ErrorType::HTTPStatus(503),
                Unset,
                Some(503),
                Fault::Upstream,
            ),
            (
                ErrorType::ReadTimedout,
                Downstream,
                Some(408),
                Fault::Client,
            ),
            (ErrorType::ConnectionClosed, Downstream, None, Fault::Client),
            (ErrorType::WriteTimedout, Downstream, None, Fault::Client),
            (
                ErrorType::InvalidHTTPHeader,
                Downstream,
                Some(400),
                Fault::Client,
            ),
            (ErrorType::InternalError, Internal, Some(500), Fault::Proxy),
        ] {
            let expected = (status, fault);
            assert_eq!(
                of(kind.clone(), source.clone()),
                expected,
                "{kind:?} {source:?}"
            );
        }
    }

    #[test]
    fn the_reason_is_the_root_cause() {
        let io = std::io::Error::other("Connection refused (os error 111)");
        let inner = Error::because(ErrorType::ConnectRefused, "inner", io);
        let outer = inner.more_context("Fail to connect to addr: 192.0.2.1:80");
        assert_eq!(
            reason(&outer),
            "connection refused: Connection refused (os error 111)"
        );
        assert_eq!(
            reason(&Error::new(ErrorType::ReadTimedout)),
            "no answer in time"
        );
    }
}
