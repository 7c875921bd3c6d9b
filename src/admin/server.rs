//! The admin listener: a loopback address or a Unix socket.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::Api;
use crate::config::{AdminListen, ListenAddress, SocketFile};
use crate::listener::passed::Passed;
use crate::listener::sockets::{self, BindError, Socket};

/// A client of the admin API that has not sent its header by then is dropped.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The admin listener could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("admin API: {0}")]
    Bind(#[from] BindError),
    #[error("admin API: the socket for {address} cannot be used: {source}")]
    Socket {
        address: ListenAddress,
        source: std::io::Error,
    },
}

/// A bound admin listener.
pub enum AdminListener {
    Tcp(std::net::TcpListener, SocketAddr),
    Unix(std::os::unix::net::UnixListener),
}

impl AdminListener {
    /// Takes the socket that was passed for it, or binds one; `None` where the admin API is off. The
    /// socket's file is for whoever runs the server alone.
    pub fn bind(
        listen: &AdminListen,
        passed: &mut Passed,
    ) -> Result<Option<AdminListener>, AdminError> {
        let Some(address) = listen.address() else {
            return Ok(None);
        };
        let socket = match passed.take(&address) {
            Some(socket) => socket,
            None => sockets::bind(&address, &SocketFile::private())?,
        };
        let listener = AdminListener::of(socket);
        Ok(Some(listener.map_err(|source| AdminError::Socket {
            address,
            source,
        })?))
    }

    pub fn of(socket: Socket) -> std::io::Result<AdminListener> {
        Ok(match socket {
            Socket::Tcp(listener) => {
                let address = listener.local_addr()?;
                AdminListener::Tcp(listener, address)
            }
            Socket::Unix(listener) => AdminListener::Unix(listener),
        })
    }

    /// The same socket, for others.
    pub fn socket(&self) -> std::io::Result<Socket> {
        match self {
            AdminListener::Tcp(listener, _) => listener.try_clone().map(Socket::Tcp),
            AdminListener::Unix(listener) => listener.try_clone().map(Socket::Unix),
        }
    }

    /// Serves until `stop`. Its connections are among `connections`: requests under way are answered.
    pub async fn serve(
        self,
        api: Arc<Api>,
        stop: CancellationToken,
        connections: TaskTracker,
    ) -> std::io::Result<()> {
        let serve = async {
            match self {
                AdminListener::Tcp(listener, address) => {
                    let listener = TcpListener::from_std(listener)?;
                    loop {
                        match listener.accept().await {
                            Ok((stream, _)) => {
                                let (api, stop) = (api.clone(), stop.clone());
                                connections.spawn(connection(stream, api, Some(address), stop));
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
                                let (api, stop) = (api.clone(), stop.clone());
                                connections.spawn(connection(stream, api, None, stop));
                            }
                            Err(error) => pause_after(&error).await,
                        }
                    }
                }
            }
        };
        stop.run_until_cancelled(serve).await.unwrap_or(Ok(()))
    }
}

async fn pause_after(error: &std::io::Error) {
    tracing::warn!(%error, "admin API cannot accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn connection<S>(
    stream: S,
    api: Arc<Api>,
    listener: Option<SocketAddr>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(api.answer(&request, listener).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "admin API connection");
    }
}
