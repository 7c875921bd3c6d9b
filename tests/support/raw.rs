//! Upstreams that do not speak HTTP, or not any more.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::place::Place;

#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// Reads the request, then closes without a word.
    Close,
    /// Reads, and never answers.
    Hang,
    /// Answers with something that is not HTTP.
    Garbage,
}

/// Stopped when dropped.
pub struct RawUpstream {
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl RawUpstream {
    pub async fn start(place: &Place, manner: Manner) -> RawUpstream {
        let addr = place.free();
        let listener = TcpListener::bind(addr).await.expect("a free address");
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(stream, manner));
            }
        });
        RawUpstream { addr, task }
    }
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, manner: Manner) {
    let _ = stream.read(&mut [0; 4096]).await;
    match manner {
        Manner::Close => {}
        Manner::Hang => std::future::pending().await,
        Manner::Garbage => {
            let _ = stream
                .write_all(b"\x00\x01 no protocol of yours\r\n\r\n")
                .await;
        }
    }
}
