//! The admin listener: a loopback address or a Unix socket.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use super::api::Api;
use crate::config::AdminListen;
use crate::listener::sockets::{self, BindError};

/// A client of the admin API that has not sent its header by then is dropped.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The admin listener could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("admin API: {0}")]
    Tcp(#[from] BindError),
    #[error("admin API: cannot listen on unix:{path}: {source}")]
    Unix {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// A bound admin listener.
pub enum AdminListener {
    Tcp(std::net::TcpListener, SocketAddr),
    Unix(std::os::unix::net::UnixListener),
}

impl AdminListener {
    /// Binds; `None` where the admin API is off.
    pub fn bind(listen: &AdminListen) -> Result<Option<AdminListener>, AdminError> {
        match listen {
            AdminListen::Off => Ok(None),
            AdminListen::Tcp(address) => {
                let listener = sockets::bind(*address)?;
                let address = listener.local_addr().unwrap_or(*address);
                Ok(Some(AdminListener::Tcp(listener, address)))
            }
            AdminListen::Unix(path) => match bind_unix(path) {
                Ok(listener) => Ok(Some(AdminListener::Unix(listener))),
                Err(source) => Err(AdminError::Unix {
                    path: path.clone(),
                    source,
                }),
            },
        }
    }

    /// Serves until the process ends.
    pub async fn serve(self, api: Arc<Api>) -> std::io::Result<()> {
        match self {
            AdminListener::Tcp(listener, address) => {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => {
                            drop(tokio::spawn(connection(stream, api.clone(), Some(address))))
                        }
                        Err(error) => pause_after(&error).await,
                    }
                }
            }
            AdminListener::Unix(listener) => {
                let listener = UnixListener::from_std(listener)?;
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => {
                            drop(tokio::spawn(connection(stream, api.clone(), None)))
                        }
                        Err(error) => pause_after(&error).await,
                    }
                }
            }
        }
    }
}

async fn pause_after(error: &std::io::Error) {
    tracing::warn!(%error, "admin API cannot accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn connection<S>(stream: S, api: Arc<Api>, listener: Option<SocketAddr>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(api.answer(&request, listener).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "admin API connection");
    }
}

/// Binds a socket that only its owner may use, in place of a stale one.
fn bind_unix(path: &Path) -> std::io::Result<std::os::unix::net::UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::AddrInUse,
                "another process listens there",
            ));
        }
        std::fs::remove_file(path)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
