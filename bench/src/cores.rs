//! Which cores the server has, and which the client and the upstream.

use std::fs;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Disjoint, unless the machine has one core only.
#[derive(Clone, Debug)]
pub struct Split {
    pub server: Vec<usize>,
    pub client: Vec<usize>,
}

impl Split {
    /// Gives the last `client` cores of those that this process may use to the client.
    pub fn new(client: Option<usize>) -> Split {
        let all = available();
        if all.len() == 1 {
            return Split {
                server: all.clone(),
                client: all,
            };
        }
        // The client and the upstream together need about what a server needs.
        let client = client.unwrap_or(all.len().div_ceil(2));
        let (server, client) = all.split_at(all.len() - client.clamp(1, all.len() - 1));
        Split {
            server: server.to_vec(),
            client: client.to_vec(),
        }
    }

    pub fn is_shared(&self) -> bool {
        self.server == self.client
    }
}

fn available() -> Vec<usize> {
    let set = sched_getaffinity(None).expect("the own affinity");
    (0..CpuSet::MAX_CPU)
        .filter(|core| set.is_set(*core))
        .collect()
}

/// Binds the calling thread, and what it starts, to some cores.
pub fn pin(cores: &[usize]) {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core);
    }
    sched_setaffinity(None, &set).expect("cores of this machine");
}

/// What some cores did so far, in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ticks {
    idle: u64,
    all: u64,
}

impl Ticks {
    pub fn now(cores: &[usize]) -> Ticks {
        let text = fs::read_to_string("/proc/stat").expect("the statistics of the kernel");
        let mut sum = Ticks::default();
        for core in cores {
            let prefix = format!("cpu{core} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
            // user nice system idle iowait irq softirq steal; guests are part of user.
            let fields: Vec<u64> = line
                .unwrap_or_default()
                .split_whitespace()
                .take(8)
                .filter_map(|field| field.parse().ok())
                .collect();
            sum.idle += fields.iter().skip(3).take(2).sum::<u64>();
            sum.all += fields.iter().sum::<u64>();
        }
        sum
    }

    /// The share of the time since `before` in which the cores idled.
    pub fn idle_since(self, before: Ticks) -> f64 {
        let all = (self.all - before.all).max(1) as f64;
        (self.idle - before.idle) as f64 / all
    }
}
