//! One HTTP/1.1 connection that the test holds in its hand: kept open across requests, and telling
//! when it is not.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::{client, tls};

const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// Never reconnects: a dropped connection is an error of the next request.
pub struct KeepAlive {
    host: String,
    sender: SendRequest<Body>,
    driver: JoinHandle<()>,
}

/// Status and body.
pub type Answer = (u16, String);

impl KeepAlive {
    /// Over TLS; trusts `ca` alone, or anybody where it is `None`.
    pub async fn open(addr: SocketAddr, sni: &str, ca: Option<&Path>) -> Result<Self, String> {
        let mut config = ca.map_or_else(tls::accepting_anything, tls::trusting);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = client::connect(addr, sni, config).await?;
        Self::over(TokioIo::new(stream), sni).await
    }

    /// Without TLS.
    pub async fn open_plain(addr: SocketAddr, host: &str) -> Result<Self, String> {
        let stream = TcpStream::connect(addr).await;
        let stream = stream.map_err(|error| error.to_string())?;
        Self::over(TokioIo::new(stream), host).await
    }

    async fn over<S>(stream: S, host: &str) -> Result<Self, String>
    where
        S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(stream).await.map_err(|error| error.to_string())?;
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(KeepAlive {
            host: host.to_owned(),
            sender,
            driver,
        })
    }

    pub async fn get(&mut self, path: &str) -> Result<Answer, String> {
        let host = self.host.clone();
        self.get_as(path, &host).await
    }

    /// With another Host than the one the connection was opened for.
    pub async fn get_as(&mut self, path: &str, host: &str) -> Result<Answer, String> {
        let request = hyper::Request::get(path).header("host", host);
        let request = request.body(Body::empty()).expect("a request");
        let answer = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, String::from_utf8_lossy(&body).into_owned()))
        };
        match tokio::time::timeout(REQUEST_LIMIT, answer).await {
            Ok(result) => result.map_err(|error| format!("{path}: {error}")),
            Err(_) => Err(format!("{path}: no answer within {REQUEST_LIMIT:?}")),
        }
    }

    /// For streaming in either direction: the answer comes as soon as its head does.
    pub async fn send(
        &mut self,
        request: hyper::Request<Body>,
    ) -> Result<hyper::Response<hyper::body::Incoming>, String> {
        self.sender
            .ready()
            .await
            .map_err(|error| error.to_string())?;
        let answer = self.sender.send_request(request).await;
        answer.map_err(|error| error.to_string())
    }

    /// Whether the server has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.driver.is_finished() || self.sender.is_closed()
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
