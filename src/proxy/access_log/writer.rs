//! Writes lines in a thread of its own, many at once: whoever has a line to write waits for no
//! device. Where the other side takes nothing, lines are lost in the end, counted and told.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::file::LogFile;

/// How long lines are collected: nobody reads faster, and a busy server writes a few hundred times
/// a second instead of for each request.
const COLLECT: Duration = Duration::from_millis(5);

/// What may wait to be written: seconds of a busy server.
const MAX_WAITING: usize = 4 * 1024 * 1024;

/// How long whoever ends the log waits for what is still to be written.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is said that lines are lost.
const BETWEEN_REPORTS: Duration = Duration::from_secs(10);

/// Lines that nobody took.
pub static LOST: AtomicU64 = AtomicU64::new(0);

/// Where lines are written.
pub enum Output {
    Stream(Box<dyn Write + Send>),
    File(LogFile),
}

impl Output {
    fn write(&mut self, lines: &[u8], written: &mut usize) -> io::Result<()> {
        match self {
            Output::Stream(stream) => {
                while *written < lines.len() {
                    match stream.write(&lines[*written..]) {
                        Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                        Ok(length) => *written += length,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                stream.flush()
            }
            Output::File(file) => file.write(lines, written),
        }
    }

    fn name(&self) -> String {
        match self {
            Output::Stream(_) => "the access log".to_owned(),
            Output::File(file) => format!("the access log {}", file.path().display()),
        }
    }
}

/// Where lines are handed in.
pub struct LineWriter(Arc<Shared>);

/// Ends the thread when it is dropped, once everything is written or nobody takes it. What is handed
/// in after that is written at once.
pub struct Writing {
    shared: Arc<Shared>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    /// There are lines, or it is over.
    filled: Condvar,
    /// The thread has ended.
    ended: Condvar,
}

struct Waiting {
    lines: Vec<u8>,
    /// How many lines found no room since it was last said.
    lost: u64,
    /// Taken by the thread; here again once it is over.
    out: Option<Output>,
    over: bool,
}

impl LineWriter {
    pub fn start(out: Output) -> io::Result<(LineWriter, Writing)> {
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Waiting {
                lines: Vec::new(),
                lost: 0,
                out: None,
                over: false,
            }),
            filled: Condvar::new(),
            ended: Condvar::new(),
        });
        let writing = shared.clone();
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writing.run(out))?;
        let writing = Writing {
            shared: shared.clone(),
        };
        Ok((LineWriter(shared), writing))
    }

    /// Hands in a whole line.
    pub fn write(&self, line: &[u8]) {
        let mut waiting = self.0.lock();
        if let Some(out) = &mut waiting.out {
            // There is nobody to tell.
            let _ = out.write(line, &mut 0);
            return;
        }
        if waiting.lines.len() + line.len() > MAX_WAITING {
            waiting.lost += 1;
            LOST.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_empty = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
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

    fn run(&self, mut out: Output) {
        let mut lines = Vec::new();
        let mut losses = Losses::new(out.name());
        loop {
            let is_over = self.wait();
            if !is_over {
                thread::sleep(COLLECT);
            }
            std::mem::swap(&mut lines, &mut self.lock().lines);
            let mut written = 0;
            let result = out.write(&lines, &mut written);
            losses.note(count(&lines[written..]), result.err());
            lines.clear();
            let mut waiting = self.lock();
            losses.add_waiting(std::mem::take(&mut waiting.lost));
            if is_over && waiting.lines.is_empty() {
                waiting.out = Some(out);
                drop(waiting);
                losses.report(true);
                self.ended.notify_all();
                return;
            }
            drop(waiting);
            losses.report(false);
        }
    }

    /// Until there is something to write, or it is over; whether that is so.
    fn wait(&self) -> bool {
        let idle = |waiting: &mut Waiting| waiting.lines.is_empty() && !waiting.over;
        let waiting = self.filled.wait_while(self.lock(), idle);
        waiting.unwrap_or_else(PoisonError::into_inner).over
    }
}

fn count(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

/// What was lost and has not been told yet.
struct Losses {
    name: String,
    lines: u64,
    error: Option<io::Error>,
    told: Option<Instant>,
}

impl Losses {
    fn new(name: String) -> Losses {
        Losses {
            name,
            lines: 0,
            error: None,
            told: None,
        }
    }

    fn note(&mut self, lines: u64, error: Option<io::Error>) {
        self.lines += lines;
        LOST.fetch_add(lines, Ordering::Relaxed);
        self.error = error.or(self.error.take());
    }

    /// Those that found no room; they are counted already.
    fn add_waiting(&mut self, lines: u64) {
        self.lines += lines;
    }

    fn report(&mut self, at_last: bool) {
        let recently = self
            .told
            .is_some_and(|told| told.elapsed() < BETWEEN_REPORTS);
        if self.lines == 0 || (recently && !at_last) {
            return;
        }
        let (name, lost) = (&self.name, self.lines);
        match self.error.take() {
            Some(error) => tracing::warn!(lost, %error, "{name} cannot be written: lines are lost"),
            None => tracing::warn!(lost, "{name} is not read fast enough: lines are lost"),
        }
        self.lines = 0;
        self.told = Some(Instant::now());
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut waiting = self.shared.lock();
        waiting.over = true;
        self.shared.filled.notify_one();
        let running = |waiting: &mut Waiting| waiting.out.is_none();
        // A thread that hangs in a write ends with the process.
        let ended = self
            .shared
            .ended
            .wait_timeout_while(waiting, PATIENCE, running);
        drop(ended);
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

    fn start(out: &Slow) -> (LineWriter, Writing) {
        LineWriter::start(Output::Stream(Box::new(out.clone()))).unwrap()
    }

    #[test]
    fn every_line_is_written_whole_and_in_order() {
        let out = Slow::default();
        let (writer, writing) = start(&out);
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
    fn nobody_waits_for_whoever_takes_nothing() {
        let out = Slow::default();
        let (writer, writing) = start(&out);
        let held = out.0.lock().unwrap();
        let mut line = vec![b'x'; 64 * 1024];
        line.push(b'\n');
        let lines = 3 * MAX_WAITING / line.len();
        let before = LOST.load(Ordering::Relaxed);
        // It comes to an end although nobody reads.
        for _ in 0..lines {
            writer.write(&line);
        }
        let lost = LOST.load(Ordering::Relaxed) - before;
        drop(held);
        drop(writing);
        let written = out.0.lock().unwrap().len() / line.len();
        assert!(lost > 0);
        assert_eq!(written as u64 + lost, lines as u64);
    }

    #[test]
    fn the_end_does_not_wait_for_ever() {
        let out = Slow::default();
        let (writer, writing) = start(&out);
        let held = out.0.lock().unwrap();
        writer.write(b"1\n");
        drop(writing);
        drop(held);
    }
}
