//! A server under measurement: its memory and processor time, its children's included.

use std::fs;
use std::ops::Sub;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::cores::pin;

/// How long a server may take to end by itself before it is killed.
const FAREWELL: Duration = Duration::from_secs(5);

/// Ended when dropped, with its children.
pub struct Server(pub Child);

/// Processor time, as the kernel counts it: in ticks of 10 ms.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub user: Duration,
    pub system: Duration,
}

impl Usage {
    /// Of this process.
    pub fn own() -> Usage {
        usage(std::process::id())
    }

    pub fn total(self) -> Duration {
        self.user + self.system
    }
}

impl Sub for Usage {
    type Output = Usage;

    fn sub(self, before: Usage) -> Usage {
        Usage {
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
        }
    }
}

impl Server {
    /// Starts it on these cores alone, or on all where there are none.
    pub fn start(command: &mut Command, cores: &[usize]) -> Server {
        // A process inherits the cores of the thread that starts it.
        let child = std::thread::scope(|scope| {
            let started = scope.spawn(|| {
                if !cores.is_empty() {
                    pin(cores);
                }
                command.spawn()
            });
            started.join().expect("no panic")
        });
        Server(child.expect("the server starts"))
    }

    /// Asks it to end by itself.
    pub fn terminate(&self) {
        signal(self.0.id(), Signal::TERM);
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Resident memory in KiB, of the process and its descendants, shared pages counted once for
    /// each (as PSS).
    pub fn memory_kib(&self) -> u64 {
        self.family().iter().map(|pid| pss_kib(*pid)).sum()
    }

    /// Processor time used so far, of the process and its descendants.
    pub fn cpu(&self) -> Duration {
        self.usage().total()
    }

    /// Processor time of the threads that run now, to the nanosecond: for what is too little to be
    /// counted in ticks. Threads that come and go in between are not in it.
    pub fn cpu_exact(&self) -> Duration {
        self.family().iter().map(|pid| on_processor(*pid)).sum()
    }

    pub fn usage(&self) -> Usage {
        let mut sum = Usage::default();
        for used in self.family().iter().map(|pid| usage(*pid)) {
            sum.user += used.user;
            sum.system += used.system;
        }
        sum
    }

    fn family(&self) -> Vec<u32> {
        let mut all = vec![self.0.id()];
        let mut next = 0;
        while next < all.len() {
            let path = format!("/proc/{pid}/task/{pid}/children", pid = all[next]);
            let children = fs::read_to_string(path).unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
            next += 1;
        }
        all
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx's workers outlive a master that is killed.
        let family = self.family();
        // A build that is instrumented writes what it counted at its own end, not when killed.
        self.terminate();
        let begun = Instant::now();
        while self.is_alive() && begun.elapsed() < FAREWELL {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
        for child in family.iter().skip(1) {
            signal(*child, Signal::KILL);
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn pss_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// The first field of each thread's `schedstat`, in nanoseconds.
fn on_processor(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

fn usage(pid: u32) -> Usage {
    let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    let text = text.unwrap_or_default();
    let Some((_, rest)) = text.rsplit_once(')') else {
        return Usage::default();
    };
    // Fields 14 and 15 of the line.
    let mut ticks = rest.split_whitespace().skip(11).map(|field| {
        let ticks = field.parse().unwrap_or(0);
        Duration::from_millis(10 * ticks)
    });
    Usage {
        user: ticks.next().unwrap_or_default(),
        system: ticks.next().unwrap_or_default(),
    }
}

/// Client, upstream and server each have a descriptor for each connection, and the server inherits
/// this limit.
pub fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Where it stays as it was, what wants more says so.
    let _ = setrlimit(Resource::Nofile, raised);
}
