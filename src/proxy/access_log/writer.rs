//! Writes lines in a thread of its own, many at once: whoever has a line to write waits for no
//! device. No line is lost: where the other side takes nothing, in the end everybody waits.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long lines are collected: nobody reads faster, and a busy server writes a few hundred times
/// a second instead of for each request.
const COLLECT: Duration = Duration::from_millis(5);

/// What may wait to be written.
const MAX_WAITING: usize = 4 * 1024 * 1024;

/// Where lines are handed in.
pub struct LineWriter(Arc<Shared>);

/// Ends the thread when it is dropped, once everything is written. What is handed in after that is
/// written at once.
pub struct Writing {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    /// There are lines, or it is over.
    filled: Condvar,
    /// There is room.
    taken: Condvar,
}

struct Waiting {
    lines: Vec<u8>,
    /// Taken by the thread; here again once it is over.
    out: Option<Box<dyn Write + Send>>,
    over: bool,
}

impl LineWriter {
    pub fn start(out: impl Write + Send + 'static) -> io::Result<(LineWriter, Writing)> {
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Waiting {
                lines: Vec::new(),
                out: None,
                over: false,
            }),
            filled: Condvar::new(),
            taken: Condvar::new(),
        });
        let writing = shared.clone();
        let thread = thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writing.run(Box::new(out)))?;
        let writing = Writing {
            shared: shared.clone(),
            thread: Some(thread),
        };
        Ok((LineWriter(shared), writing))
    }

    /// Hands in whole lines.
    pub fn write(&self, lines: &[u8]) {
        let mut waiting = self.0.lock();
        if let Some(out) = &mut waiting.out {
            // There is nobody to tell.
            let _ = out.write_all(lines);
            return;
        }
        while waiting.lines.len() > MAX_WAITING && !waiting.over {
            waiting = self
                .0
                .taken
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let was_empty = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(lines);
        drop(waiting);
        if was_empty {
            self.0.filled.notify_one();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Every change is whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut out: Box<dyn Write + Send>) {
        let mut lines = Vec::new();
        loop {
            let is_over = self.wait();
            if !is_over {
                thread::sleep(COLLECT);
            }
            std::mem::swap(&mut lines, &mut self.lock().lines);
            self.taken.notify_all();
            // Nobody reads the log any more: there is nobody to tell.
            let _ = out.write_all(&lines);
            lines.clear();
            let mut waiting = self.lock();
            if is_over && waiting.lines.is_empty() {
                let _ = out.flush();
                waiting.out = Some(out);
                return;
            }
        }
    }

    /// Until there is something to write, or it is over; whether that is so.
    fn wait(&self) -> bool {
        let idle = |waiting: &mut Waiting| waiting.lines.is_empty() && !waiting.over;
        let waiting = self.filled.wait_while(self.lock(), idle);
        waiting.unwrap_or_else(PoisonError::into_inner).over
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.filled.notify_one();
        self.shared.taken.notify_all();
        if let Some(thread) = self.thread.take() {
            // It panicked if it cannot be joined, and said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as long as somebody holds the lock.
    #[derive(Clone, Default)]
    struct Slow(Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_whole_and_in_order() {
        let out = Slow::default();
        let (writer, writing) = LineWriter::start(out.clone()).unwrap();
        let line = |thread: usize, number: usize| format!("{thread} {number}\n");
        thread::scope(|scope| {
            for thread in 0..4 {
                let writer = &writer;
                scope.spawn(move || {
                    for number in 0..1000 {
                        writer.write(line(thread, number).as_bytes());
                    }
                });
            }
        });
        drop(writing);
        writer.write(line(4, 0).as_bytes());
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        for thread in 0..4 {
            let own = text
                .lines()
                .filter(|line| line.starts_with(&format!("{thread} ")));
            let expected = (0..1000).map(|number| line(thread, number));
            assert!(own.map(|line| format!("{line}\n")).eq(expected), "{thread}");
        }
        assert!(text.ends_with("4 0\n"));
    }

    #[test]
    fn whoever_writes_waits_for_a_reader_in_the_end() {
        let out = Slow::default();
        let (writer, writing) = LineWriter::start(out.clone()).unwrap();
        let held = out.0.lock().unwrap();
        let line = vec![b'x'; 64 * 1024];
        let (done, is_done) = std::sync::mpsc::channel();
        let lines = 2 * MAX_WAITING / line.len() + 4;
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..lines {
                    writer.write(&line);
                }
                done.send(()).unwrap();
            });
            let early = is_done.recv_timeout(Duration::from_millis(200));
            assert!(early.is_err(), "it holds everything");
            drop(held);
        });
        drop(writing);
        assert_eq!(out.0.lock().unwrap().len(), lines * 64 * 1024);
    }
}
