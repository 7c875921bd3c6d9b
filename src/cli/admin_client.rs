//! Asks a running perennial through its admin API, over TCP or a Unix socket.

use std::path::PathBuf;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::AdminListen;

/// Larger than the status of a hundred thousand certificates.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Where the admin API of the perennial in question listens.
#[derive(Debug, clap::Args)]
pub(super) struct AdminArgs {
    /// Admin API of the running perennial: host:port or unix:/path
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:2019")]
    admin: String,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum AdminClientError {
    #[error(
        "no perennial answers at {address}: {source} (is it running? --admin names another address)"
    )]
    Connect {
        address: String,
        source: std::io::Error,
    },
    #[error("the admin API at {address} broke off: {source}")]
    Http {
        address: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{message} (status {status} of {path})")]
    Refused {
        path: String,
        status: StatusCode,
        message: String,
    },
    #[error("the answer to {path} is not what this version of perennial expects: {source}")]
    Unexpected {
        path: String,
        source: serde_json::Error,
    },
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

impl AdminArgs {
    /// The one of a configuration, unless that has none.
    pub(super) fn of(listen: &AdminListen) -> Option<AdminArgs> {
        let admin = match listen {
            AdminListen::Tcp(address) => address.to_string(),
            AdminListen::Unix(path) => format!("unix:{}", path.display()),
            AdminListen::Off => return None,
        };
        Some(AdminArgs { admin })
    }

    pub(super) fn at(admin: String) -> AdminArgs {
        AdminArgs { admin }
    }

    pub(super) fn address(&self) -> &str {
        &self.admin
    }

    /// `GET path`, decoded.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminClientError> {
        self.request(Method::GET, path)
    }

    /// `POST path`, its answer decoded.
    pub(super) fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminClientError> {
        self.request(Method::POST, path)
    }

    fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, AdminClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(AdminClientError::Runtime)?;
        let (status, body) = runtime.block_on(self.exchange(method, path))?;
        if !status.is_success() {
            return Err(AdminClientError::Refused {
                path: path.to_owned(),
                status,
                message: error_message(&body),
            });
        }
        serde_json::from_slice(&body).map_err(|source| AdminClientError::Unexpected {
            path: path.to_owned(),
            source,
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, Bytes), AdminClientError> {
        let connect = |source| AdminClientError::Connect {
            address: self.admin.clone(),
            source,
        };
        let result = match self.admin.strip_prefix("unix:") {
            Some(socket) => {
                let socket = PathBuf::from(socket);
                let stream = tokio::net::UnixStream::connect(socket)
                    .await
                    .map_err(connect)?;
                send(stream, "localhost", method, path).await
            }
            None => {
                let stream = tokio::net::TcpStream::connect(&self.admin)
                    .await
                    .map_err(connect)?;
                send(stream, &self.admin, method, path).await
            }
        };
        result.map_err(|source| AdminClientError::Http {
            address: self.admin.clone(),
            source,
        })
    }
}

async fn send<S>(
    stream: S,
    host: &str,
    method: Method,
    path: &str,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, host)
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
        .collect()
        .await?;
    Ok((status, body.to_bytes()))
}

fn error_message(body: &[u8]) -> String {
    serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|value| value["error"].as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned())
}
