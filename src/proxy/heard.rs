//! A connection of HTTP/2 to an upstream that notes whether anything comes, and the pings that find out
//! whether anybody is still there (RFC 9113 section 6.7).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::Instant;
use tokio_util::io::InspectReader;

use super::connection::Socket;

/// After a ping in a silence the next one waits for so long, or for something other than its answer:
/// servers of gRPC end connections that send more than one in five minutes without reason.
const PING_PAUSE: Duration = Duration::from_secs(310);

/// The socket of a connection.
pub type Heard = InspectReader<Socket, Box<dyn FnMut(&[u8]) + Send>>;

/// And where it notes that something has come.
pub fn heard(socket: Socket) -> (Heard, Arc<AtomicBool>) {
    let something = Arc::<AtomicBool>::default();
    let noted = Arc::clone(&something);
    let note = move |data: &[u8]| {
        if !data.is_empty() {
            noted.store(true, Ordering::Relaxed);
        }
    };
    (InspectReader::new(socket, Box::new(note)), something)
}

/// Asks whether the other side is there, when it has been silent.
pub struct Pinger {
    pings: Option<PingPong>,
    something: Arc<AtomicBool>,
    silent_since: Instant,
    /// When the ping was sent whose answer has not come.
    asked: Option<Instant>,
    /// When the last one was sent, if nothing but its answer has come since.
    last: Option<Instant>,
}

impl Pinger {
    pub fn new(pings: Option<PingPong>, something: Arc<AtomicBool>) -> Pinger {
        Pinger {
            pings,
            something,
            silent_since: Instant::now(),
            asked: None,
            last: None,
        }
    }

    /// Asks at once, unless an answer is waited for already: it comes after what the other side says
    /// first of all.
    pub fn ask(&mut self, now: Instant) {
        let pings = self.pings.as_mut().filter(|_| self.asked.is_none());
        if pings.is_some_and(|pings| pings.send_ping(Ping::opaque()).is_ok()) {
            self.asked = Some(now);
        }
    }

    /// Whether an answer has come.
    pub fn poll_answer(&mut self, cx: &mut Context<'_>) -> bool {
        let (Some(pings), Some(asked)) = (&mut self.pings, self.asked) else {
            return false;
        };
        let Poll::Ready(answer) = pings.poll_pong(cx) else {
            return false;
        };
        self.asked = None;
        self.last = Some(asked);
        // An error is the connection's, which says it, too.
        self.something.store(false, Ordering::Relaxed);
        self.silent_since = Instant::now();
        answer.is_ok()
    }

    /// To be called now and then. Whether the other side is gone: it was silent for `limit`, was
    /// asked, and has said nothing for as long again.
    pub fn is_gone(&mut self, now: Instant, limit: Duration) -> bool {
        if self.something.swap(false, Ordering::Relaxed) {
            self.silent_since = now;
            // It lives, and its answer is on its way behind what it sends.
            self.asked = self.asked.map(|_| now);
            self.last = None;
        }
        if let Some(asked) = self.asked {
            return now - asked >= limit;
        }
        let rested = self.last.is_none_or(|last| now - last >= PING_PAUSE);
        if now - self.silent_since >= limit && rested {
            self.ask(now);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// A connection whose other side answers pings; it ends with its sender.
    async fn connected() -> (Pinger, h2::client::SendRequest<bytes::Bytes>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (far, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(far).await.unwrap();
            while let Some(Ok(_)) = connection.accept().await {}
        });
        let (heard, something) = super::heard(Socket::Tcp(near.unwrap()));
        let (sender, mut driver) = h2::client::handshake(heard).await.unwrap();
        let pinger = Pinger::new(driver.ping_pong(), something);
        tokio::spawn(driver);
        (pinger, sender)
    }

    async fn answered(pinger: &mut Pinger) {
        std::future::poll_fn(|cx| match pinger.poll_answer(cx) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    #[tokio::test]
    async fn whoever_answers_is_there_and_is_not_asked_again_soon() {
        let (mut pinger, _sender) = connected().await;
        let start = Instant::now();
        assert!(!pinger.is_gone(start, LIMIT));
        let (asked, late) = (start + 2 * LIMIT, start + 4 * LIMIT);
        // What was heard until then was heard then.
        pinger.is_gone(start, LIMIT);
        assert!(!pinger.is_gone(asked, LIMIT) && pinger.asked.is_some());
        answered(&mut pinger).await;
        assert!(!pinger.is_gone(late, LIMIT) && pinger.asked.is_none());
        let again = asked + PING_PAUSE;
        assert!(!pinger.is_gone(again, LIMIT) && pinger.asked.is_some());
    }

    #[tokio::test]
    async fn whoever_does_not_is_gone() {
        let (mut pinger, _sender) = connected().await;
        pinger.asked = Some(Instant::now());
        pinger.something.store(false, Ordering::Relaxed);
        let asked = Instant::now();
        pinger.asked = Some(asked);
        assert!(!pinger.is_gone(asked + LIMIT / 2, LIMIT));
        assert!(pinger.is_gone(asked + LIMIT, LIMIT));
        // Something else that comes is a sign of life.
        pinger.something.store(true, Ordering::Relaxed);
        assert!(!pinger.is_gone(asked + LIMIT, LIMIT));
    }
}
