//! As process 1, which it is in many containers, this process inherits what others leave behind: a
//! program that ends when nobody waits for it stays in the table of processes until somebody does.
//! It waits for nobody else's sake: its own children are left to whoever has started them.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};
use tokio::signal::unix::{SignalKind, signal};

/// Whoever has started a program has seen its end by then.
const GRACE: Duration = Duration::from_secs(1);

/// Waits for what nobody else waits for, for as long as the process lives. Does nothing unless it is
/// process 1.
pub async fn run() {
    if std::process::id() != 1 {
        return;
    }
    let mut ended = match signal(SignalKind::child()) {
        Ok(ended) => ended,
        Err(error) => {
            tracing::warn!(%error, "as process 1 this one should wait for orphans, and cannot");
            return;
        }
    };
    // Some may have ended before.
    let mut known = HashSet::new();
    loop {
        let found = ended_children();
        for pid in found.intersection(&known) {
            reap(*pid);
        }
        known = found;
        if known.is_empty() {
            ended.recv().await;
        }
        tokio::time::sleep(GRACE).await;
    }
}

fn reap(pid: i32) {
    // It may be gone by now.
    let ended = Pid::from_raw(pid).map(|pid| waitpid(Some(pid), WaitOptions::NOHANG));
    if let Some(Ok(Some(_))) = ended {
        tracing::debug!(pid, "an orphan has ended");
    }
}

/// Those of our children that have ended and that nobody has waited for.
fn ended_children() -> HashSet<i32> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return HashSet::new();
    };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| is_ended_child(&stat, std::process::id()))
    })
    .collect()
}

/// proc_pid_stat(5): the name in parentheses may have anything in it, even those.
fn is_ended_child(stat: &str, parent: u32) -> bool {
    let Some((_, rest)) = stat.rsplit_once(") ") else {
        return false;
    };
    let mut fields = rest.split(' ');
    fields.next() == Some("Z") && fields.next() == Some(parent.to_string().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_behind_the_name() {
        assert!(is_ended_child("7 (a) Z 1 7 7", 1));
        assert!(is_ended_child("7 (a) Z 1 (b) Z 1 7 7", 1));
        assert!(!is_ended_child("7 (Z 1) S 1 7 7", 1));
        assert!(!is_ended_child("7 (a) Z 17 7 7", 1));
        assert!(!is_ended_child("7", 1));
    }
}
