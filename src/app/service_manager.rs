//! What a service manager is told, by the protocol of sd_notify(3): ready, reloading, stopping, who
//! the main process is, and that there is life. It decides nothing; without `NOTIFY_SOCKET` it says
//! nothing.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::listener::workers::Workers;

/// Where the service manager listens.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// Within how many microseconds it wants a sign of life.
const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
/// From which process, if from one alone.
pub(super) const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// How long a service manager that does not read may hold us up.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The service manager, if there is one. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct ServiceManager(Option<Arc<Channel>>);

struct Channel {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The one that the environment names. One that cannot be talked to is as good as none, which is
    /// said.
    pub fn from_environment() -> ServiceManager {
        let Some(name) = std::env::var_os(NOTIFY_SOCKET).filter(|name| !name.is_empty()) else {
            return ServiceManager(None);
        };
        let watchdog = watchdog_interval(
            std::env::var(WATCHDOG_USEC).ok().as_deref(),
            std::env::var(WATCHDOG_PID).ok().as_deref(),
            std::process::id(),
        );
        let channel = Channel::open(&name, watchdog).inspect_err(|error| {
            tracing::warn!(socket = %name.display(), %error, "the service manager cannot be told anything");
        });
        ServiceManager(channel.ok().map(Arc::new))
    }

    /// Everything is bound, and the first load is served.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={status}"));
    }

    /// A reload is over.
    pub fn reloaded(&self) {
        self.say("READY=1");
    }

    /// A reload has begun: until it is ready again.
    pub fn reloading(&self) {
        let usec = clock::monotonic_usec();
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    pub fn stopping(&self, status: &str) {
        self.say(&format!("STOPPING=1\nSTATUS={status}"));
    }

    /// What people see, in one line.
    pub fn status(&self, status: &str) {
        self.say(&format!("STATUS={status}"));
    }

    /// From now on another process is the service.
    pub fn main_process(&self, pid: u32) {
        self.say(&format!("MAINPID={pid}"));
    }

    fn say(&self, state: &str) {
        let Some(channel) = &self.0 else { return };
        if let Err(error) = channel
            .socket
            .send_to_addr(state.as_bytes(), &channel.address)
        {
            tracing::warn!(%error, state, "the service manager was not told");
        }
    }

    /// Gives signs of life for as long as every thread that serves connections makes progress, and
    /// the runtime that this runs on. Ends at once where none are wanted.
    pub async fn watch(self, workers: Workers) {
        let Some(interval) = self.0.as_ref().and_then(|channel| channel.watchdog) else {
            return;
        };
        // Twice as often as is wanted (sd_watchdog_enabled(3)), and no look takes longer.
        let pause = interval / 2;
        let mut ticks = tokio::time::interval(pause);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match tokio::time::timeout(pause, workers.make_progress()).await {
                Ok(()) => self.say("WATCHDOG=1"),
                Err(_) => tracing::error!(
                    within = ?pause,
                    "a worker thread makes no progress: the service manager gets no sign of life"
                ),
            }
        }
    }
}

impl Channel {
    fn open(name: &OsStr, watchdog: Option<Duration>) -> io::Result<Channel> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => {
                let reason = "it is neither a path nor an abstract name";
                return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Channel {
            socket,
            address,
            watchdog,
        })
    }
}

/// `None`: nobody waits for signs of life, or not for this process's.
fn watchdog_interval(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let usec: u64 = usec?.parse().ok().filter(|usec| *usec > 0)?;
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    is_ours.then(|| Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_of_life_are_wanted_of_one_process() {
        let second = Some(Duration::from_secs(1));
        for (usec, pid, expected) in [
            (Some("1000000"), None, second),
            (Some("1000000"), Some("7"), second),
            (Some("1000000"), Some("8"), None),
            (Some("0"), None, None),
            (Some("soon"), None, None),
            (None, Some("7"), None),
        ] {
            assert_eq!(
                watchdog_interval(usec, pid, 7),
                expected,
                "{usec:?} {pid:?}"
            );
        }
    }

    #[test]
    fn what_is_said_arrives() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let channel = Channel::open(path.as_os_str(), None).unwrap();
        let service = ServiceManager(Some(Arc::new(channel)));
        service.ready("up");
        service.reloading();
        let mut buffer = [0; 200];
        let mut next = || {
            let length = manager.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        assert_eq!(next(), "READY=1\nSTATUS=up");
        assert!(next().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    }
}
