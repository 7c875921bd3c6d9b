//! A real WebSocket client (RFC 6455) over TLS.

use std::net::SocketAddr;
use std::path::Path;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::{client, tls};

pub struct WebSocket(WebSocketStream<TlsStream<TcpStream>>);

impl WebSocket {
    /// Trusts `ca` alone, or anybody where it is `None`.
    pub async fn open(
        addr: SocketAddr,
        host: &str,
        path: &str,
        ca: Option<&Path>,
    ) -> Result<Self, String> {
        let mut config = ca.map_or_else(tls::accepting_anything, tls::trusting);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = client::connect(addr, host, config).await?;
        let opened = client_async(format!("wss://{host}{path}"), stream).await;
        opened
            .map(|(socket, _)| WebSocket(socket))
            .map_err(|error| error.to_string())
    }

    /// Sends a text and waits for the next message.
    pub async fn exchange(&mut self, text: &str) -> Result<String, String> {
        let sent = self.0.send(Message::text(text)).await;
        sent.map_err(|error| error.to_string())?;
        match self.0.next().await {
            Some(Ok(message)) => Ok(message.into_text().map_err(|e| e.to_string())?.to_string()),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("the connection was closed".to_owned()),
        }
    }
}
