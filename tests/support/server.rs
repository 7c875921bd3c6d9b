//! An HTTP server inside the test, of HTTP/1.1 and without TLS of HTTP/2 as well, that can be taken away and brought back on the same address,
//! its open connections included.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

#[derive(Clone, Debug)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Stopped when dropped.
pub struct Server {
    address: Address,
    router: Router,
    tls: Option<TlsAcceptor>,
    running: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    pub async fn tcp(addr: SocketAddr, router: Router) -> Server {
        Self::start_new(Address::Tcp(addr), router, None).await
    }

    pub async fn tls(addr: SocketAddr, router: Router, config: rustls::ServerConfig) -> Server {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self::start_new(Address::Tcp(addr), router, Some(acceptor)).await
    }

    pub async fn unix(path: &Path, router: Router) -> Server {
        Self::start_new(Address::Unix(path.into()), router, None).await
    }

    async fn start_new(address: Address, router: Router, tls: Option<TlsAcceptor>) -> Server {
        let server = Server {
            address,
            router,
            tls,
            running: Mutex::default(),
        };
        server.start().await;
        server
    }

    pub async fn start(&self) {
        let (router, tls) = (self.router.clone(), self.tls.clone());
        let task = match &self.address {
            Address::Tcp(addr) => {
                let listener = TcpListener::bind(addr).await.expect("a free address");
                tokio::spawn(accept_tcp(listener, router, tls))
            }
            Address::Unix(path) => {
                let _ = std::fs::remove_file(path);
                let listener = UnixListener::bind(path).expect("a socket path");
                tokio::spawn(accept_unix(listener, router))
            }
        };
        *self.running.lock().unwrap() = Some(task);
    }

    /// Closes the listener and every connection; new ones are refused by the kernel.
    pub async fn stop(&self) {
        let task = self.running.lock().unwrap().take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = self.running.lock().unwrap().take() {
            task.abort();
        }
    }
}

async fn accept_tcp(listener: TcpListener, router: Router, tls: Option<TlsAcceptor>) {
    // Dropped with this task: that is what closes the connections.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let (router, tls) = (router.clone(), tls.clone());
        connections.spawn(async move {
            match tls {
                None if begins_http2(&stream).await => serve_http2(stream, router).await,
                None => serve(stream, router).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(stream, router).await,
                    Err(error) => eprintln!("upstream handshake: {error}"),
                },
            }
        });
    }
}

async fn accept_unix(listener: UnixListener, router: Router) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, router.clone()));
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = connection.with_upgrades().await;
}

/// Whether the client knows that HTTP/2 is spoken (RFC 9113 section 3.3).
async fn begins_http2(stream: &TcpStream) -> bool {
    let mut first = [0; 3];
    let seen = stream.peek(&mut first).await;
    seen.is_ok_and(|length| first[..length] == *b"PRI")
}

/// It does not say that it takes WebSockets.
async fn serve_http2(stream: TcpStream, router: Router) {
    let service = TowerToHyperService::new(router);
    let connection = http2::Builder::new(TokioExecutor::new());
    let _ = connection
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
