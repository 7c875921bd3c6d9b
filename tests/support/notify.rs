//! The service manager's end of sd_notify(3).

use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;

use super::place::Place;
use super::wait::{SOON, wait_until};

/// Everything that it was told, in order.
pub struct ServiceManager {
    socket: UnixDatagram,
    name: String,
    heard: Mutex<Vec<String>>,
}

impl ServiceManager {
    pub fn new(place: &Place) -> ServiceManager {
        let path = place.path("notify.sock");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        ServiceManager::over(socket, &path.display().to_string())
    }

    pub fn over(socket: UnixDatagram, name: &str) -> ServiceManager {
        socket.set_nonblocking(true).expect("not blocking");
        ServiceManager {
            socket,
            name: name.to_owned(),
            heard: Mutex::default(),
        }
    }

    /// For `NOTIFY_SOCKET`.
    pub fn name(&self) -> String {
        self.name.clone()
    }

    pub fn heard(&self) -> Vec<String> {
        let mut heard = self.heard.lock().unwrap();
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        heard.clone()
    }

    pub fn forget(&self) {
        self.heard();
        self.heard.lock().unwrap().clear();
    }

    /// The first message with this text.
    pub async fn wait_for(&self, text: &str) -> String {
        wait_until(SOON, text, async || {
            let heard = self.heard();
            heard.into_iter().find(|message| message.contains(text))
        })
        .await
    }

    /// One with `then` after one with `first`.
    pub async fn wait_for_after(&self, first: &str, then: &str) -> String {
        let what = format!("{then} after {first}");
        wait_until(SOON, &what, async || {
            let heard = self.heard().into_iter();
            let mut rest = heard.skip_while(|message| !message.contains(first)).skip(1);
            rest.find(|message| message.contains(then))
        })
        .await
    }
}
