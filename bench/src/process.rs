//! A server under measurement: its memory and processor time, its children's included.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

/// Killed when dropped.
pub struct Server(pub Child);

impl Server {
    pub fn start(command: &mut Command) -> Server {
        Server(command.spawn().expect("the server starts"))
    }

    /// Resident memory in KiB, of the process and its descendants, shared pages counted once for
    /// each (as PSS).
    pub fn memory_kib(&self) -> u64 {
        self.family().iter().map(|pid| pss_kib(*pid)).sum()
    }

    /// Processor time used so far, of the process and its descendants.
    pub fn cpu(&self) -> Duration {
        self.family().iter().map(|pid| cpu(*pid)).sum()
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
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pss_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn cpu(pid: u32) -> Duration {
    let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    let text = text.unwrap_or_default();
    let Some((_, rest)) = text.rsplit_once(')') else {
        return Duration::ZERO;
    };
    // Fields 14 and 15 of the line, user and system time in ticks of 10 ms.
    let ticks: u64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(10 * ticks)
}
