//! The threads that serve connections, each with a runtime of its own. A connection stays where it
//! began, and so does everything that belongs to it: its timers, its tasks, the connections to
//! upstreams that it uses. No request is handed from one core to another, and no lock is waited for.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::proxy::Proxy;

/// All of them. They end when the last clone is dropped, with what they serve.
#[derive(Clone)]
pub struct Workers(Arc<Shared>);

struct Shared {
    workers: Vec<Worker>,
    _running: DropGuard,
}

struct Worker {
    runtime: Handle,
    proxy: Proxy,
    open: Arc<AtomicUsize>,
}

/// A place for one connection, which counts as open until this is dropped.
pub struct Seat {
    runtime: Handle,
    /// For this worker's connections alone.
    pub proxy: Proxy,
    open: Open,
}

/// Counts an open connection.
pub struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts so many threads, one at least.
    pub fn start(count: usize, proxy: &Proxy) -> io::Result<Workers> {
        let stop = CancellationToken::new();
        let workers = (0..count.max(1)).map(|_| Worker::start(proxy.for_worker(), stop.clone()));
        Ok(Workers(Arc::new(Shared {
            workers: workers.collect::<io::Result<_>>()?,
            _running: stop.drop_guard(),
        })))
    }

    /// Returns once each of them has got to something new.
    pub async fn make_progress(&self) {
        let probes: Vec<_> = self.0.workers.iter().map(Worker::probe).collect();
        for probe in probes {
            // It fails only where the runtime has ended.
            let _ = probe.await;
        }
    }

    /// A seat at the worker with the fewest connections: they live long, so that chance would put
    /// too many on one core.
    pub fn seat(&self) -> Option<Seat> {
        let workers = self.0.workers.iter();
        let worker = workers.min_by_key(|worker| worker.open.load(Ordering::Relaxed))?;
        worker.open.fetch_add(1, Ordering::Relaxed);
        Some(Seat {
            runtime: worker.runtime.clone(),
            proxy: worker.proxy.clone(),
            open: Open(worker.open.clone()),
        })
    }
}

impl Worker {
    fn start(proxy: Proxy, stop: CancellationToken) -> io::Result<Worker> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new()
            .name("worker".to_owned())
            .spawn(move || runtime.block_on(stop.cancelled()))?;
        Ok(Worker {
            runtime: handle,
            proxy,
            open: Arc::default(),
        })
    }

    fn probe(&self) -> tokio::task::JoinHandle<()> {
        self.runtime.spawn(async {})
    }
}

impl Seat {
    /// Serves a connection there, as one of `connections`. What serves it keeps the [`Open`] until it
    /// is over: a future around it would be memory for it twice.
    pub fn serve<F>(self, connections: &mut JoinSet<()>, serve: impl FnOnce(Proxy, Open) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        connections.spawn_on(serve(self.proxy, self.open), &self.runtime);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arc_swap::ArcSwap;

    use super::*;
    use crate::acme::challenges::Challenges;
    use crate::admin::metrics::Metrics;
    use crate::proxy::Routing;

    #[tokio::test]
    async fn a_thread_that_hangs_makes_no_progress() {
        let routing = Arc::new(ArcSwap::from_pointee(Routing::default()));
        let metrics = Arc::new(Metrics::new());
        let proxy = Proxy::new(routing, Challenges::new(), metrics, Arc::default());
        let workers = Workers::start(2, &proxy).unwrap();
        workers.make_progress().await;
        let (let_go, waits) = std::sync::mpsc::channel::<()>();
        let seat = workers.seat().unwrap();
        seat.runtime.spawn(async move {
            // Its other end is dropped.
            let _ = waits.recv();
        });
        let look = tokio::time::timeout(Duration::from_millis(200), workers.make_progress());
        assert!(look.await.is_err());
        drop(let_go);
        workers.make_progress().await;
    }
}
