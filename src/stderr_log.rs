//! The log's way to stderr. Whoever has a line to write does not wait for whoever reads it: what is
//! not taken at once is written by a thread, what is too much is lost, counted and told.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;

/// What may wait to be written: more than a thousand lines.
const MAX_WAITING: usize = 256 * 1024;

/// How long whoever ends the process, or panics, waits for what is still to be written.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// How long a line waits for another that is being written.
const TURN_TIMEOUT: Duration = Duration::from_millis(1);

/// How often it is said that lines are lost.
const BETWEEN_REPORTS: Duration = Duration::from_secs(10);

/// Lines that nobody took.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Held by whoever writes to stderr: lines of two writers are not mixed.
static TURN: Mutex<()> = Mutex::new(());

static SINK: OnceLock<Sink> = OnceLock::new();

/// Takes lines. There is one for the process.
struct Sink {
    out: Out,
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// The thread has taken some, and has not written all of it.
    writing: bool,
    /// How many lines found no room since it was last said.
    lost: u64,
}

/// What stderr is, as far as it matters for not waiting.
enum Out {
    /// A pipe or a terminal, opened anew: others that have it must not find it changed.
    Opened(File),
    Socket,
    /// A file on a disk, which takes what it is given.
    File,
    /// It cannot be opened, by us at least: only the thread writes.
    Unknown,
}

/// What [`tracing_subscriber`] writes an event to. Each write is a whole line.
#[derive(Clone, Copy)]
pub struct Lines(&'static Sink);

/// Stderr for another thread that writes whole lines, and may wait.
pub struct Turned;

/// Lines go this way from now on.
pub fn start() -> Lines {
    start_with(PATIENCE)
}

/// `patience`: of whoever panics.
fn start_with(patience: Duration) -> Lines {
    let sink = SINK.get_or_init(|| Sink {
        out: Out::of_stderr(),
        queue: Mutex::default(),
        filled: Condvar::new(),
        emptied: Condvar::new(),
    });
    let thread = thread::Builder::new().name("log".to_owned());
    if let Err(error) = thread.spawn(|| sink.run()) {
        eprintln!("perennial: no thread for the log: {error}");
    }
    // The usual way waits for whoever reads.
    std::panic::set_hook(Box::new(move |panic| {
        sink.write(panicked(panic).as_bytes());
        flush(patience);
    }));
    Lines(sink)
}

/// As Rust says it by itself.
fn panicked(panic: &std::panic::PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let backtrace = std::backtrace::Backtrace::capture();
    match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => {
            format!("thread '{name}' {panic}\nstack backtrace:\n{backtrace}\n")
        }
        _ => format!("thread '{name}' {panic}\n"),
    }
}

/// Waits for what is still to be written, for so long at most. Whether all is.
pub fn flush(limit: Duration) -> bool {
    let Some(sink) = SINK.get() else {
        return true;
    };
    let busy = |queue: &mut Queue| queue.writing || !queue.bytes.is_empty();
    let waited = sink.emptied.wait_timeout_while(sink.queue(), limit, busy);
    let (_queue, waited) = waited.unwrap_or_else(PoisonError::into_inner);
    !waited.timed_out()
}

/// Lines that nobody took.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

impl Out {
    fn of_stderr() -> Out {
        let stderr = io::stderr();
        let owned = stderr.as_fd().try_clone_to_owned();
        let kind = owned.and_then(|fd| File::from(fd).metadata());
        let Ok(kind) = kind.map(|metadata| metadata.file_type()) else {
            return Out::Unknown;
        };
        if kind.is_file() {
            return Out::File;
        }
        if kind.is_socket() {
            return Out::Socket;
        }
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
        let opened = OpenOptions::new()
            .write(true)
            .custom_flags(flags.cast_signed())
            .open("/proc/self/fd/2");
        opened.map_or(Out::Unknown, Out::Opened)
    }

    /// Writes as much as is taken at once.
    fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Out::Opened(file) => (&*file).write(bytes),
            Out::Socket => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(rustix::net::send(io::stderr(), bytes, flags)?)
            }
            Out::File => Ok(rustix::io::write(io::stderr(), bytes)?),
            Out::Unknown => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Waits until something is taken.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let written = match self {
                Out::Unknown => rustix::io::write(io::stderr(), bytes).map_err(io::Error::from),
                _ => self.write_now(bytes),
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return written,
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let stderr = io::stderr();
        let fd = match self {
            Out::Opened(file) => file.as_fd(),
            Out::Socket | Out::File | Out::Unknown => stderr.as_fd(),
        };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Sink {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Every change is whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a whole line.
    fn write(&self, line: &[u8]) {
        let mut queue = self.queue();
        let mut rest = line;
        if queue.bytes.is_empty()
            && !queue.writing
            && let Some(_turn) = turn_soon()
        {
            match self.out.write_now(line) {
                Ok(written) => rest = &line[written..],
                Err(error) if waits(&error) => {}
                // There is nobody to tell.
                Err(_) => {
                    LOST.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
        if rest.is_empty() {
            return;
        }
        if queue.bytes.len() + rest.len() > MAX_WAITING {
            queue.lost += 1;
            LOST.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.bytes.extend_from_slice(rest);
        self.filled.notify_one();
    }

    fn run(&self) {
        let mut told: Option<Instant> = None;
        loop {
            let empty = |queue: &mut Queue| queue.bytes.is_empty();
            let filled = self.filled.wait_while(self.queue(), empty);
            let mut queue = filled.unwrap_or_else(PoisonError::into_inner);
            let bytes = std::mem::take(&mut queue.bytes);
            queue.writing = true;
            drop(queue);
            let written = self.write_all(&bytes);
            let mut queue = self.queue();
            queue.writing = false;
            let lost = std::mem::take(&mut queue.lost);
            let is_empty = queue.bytes.is_empty();
            drop(queue);
            if written.is_err() {
                let lines = memchr::memchr_iter(b'\n', &bytes).count() as u64;
                LOST.fetch_add(lines, Ordering::Relaxed);
            }
            if is_empty {
                self.emptied.notify_all();
            }
            let recently = told.is_some_and(|told| told.elapsed() < BETWEEN_REPORTS);
            if lost > 0 && recently {
                self.queue().lost += lost;
            } else if lost > 0 {
                told = Some(Instant::now());
                tracing::warn!(
                    lost,
                    "stderr is not read fast enough: lines of the log are lost"
                );
            }
        }
    }

    fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        while !bytes.is_empty() {
            match self.out.write(bytes)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => bytes = &bytes[written..],
            }
        }
        Ok(())
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// The turn, unless it is somebody's who waits for a reader.
fn turn_soon() -> Option<MutexGuard<'static, ()>> {
    let begun = Instant::now();
    loop {
        match TURN.try_lock() {
            Ok(turn) => return Some(turn),
            Err(TryLockError::Poisoned(turn)) => return Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) if begun.elapsed() >= TURN_TIMEOUT => return None,
            Err(TryLockError::WouldBlock) => thread::yield_now(),
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Turned {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        io::stderr().write(lines)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};

    use super::*;

    /// Set in the process that [`a_process_that_panics`] is for.
    const CHILD: &str = "PERENNIAL_TEST_PANICS";

    /// More than a pipe holds, and less than may wait.
    const LINES: usize = 2000;

    /// The hook's work, in a process of its own: the log waits for a reader, something panics, and
    /// the process ends at once.
    #[test]
    fn a_process_that_panics() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        // Whoever reads may be slow to begin with it.
        let mut lines = start_with(Duration::from_secs(60));
        for number in 0..LINES {
            writeln!(lines, "{number:04} {}", "x".repeat(70)).unwrap();
        }
        assert!(!flush(Duration::ZERO), "all of it fits the pipe");
        println!("panics now");
        let panics = thread::Builder::new().name("unlucky".to_owned());
        let panics = panics.spawn(|| panic!("a reason to end")).unwrap();
        assert!(panics.join().is_err());
        std::process::exit(7);
    }

    #[test]
    fn what_was_said_before_a_panic_and_the_panic_are_written() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "stderr_log::tests::a_process_that_panics"])
            .arg("--nocapture")
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut said = BufReader::new(stdout.unwrap()).lines();
        assert!(said.any(|line| line.unwrap().contains("panics now")));
        // Nobody reads yet: a process that does not wait for that has ended by now.
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(1) {
            thread::sleep(Duration::from_millis(10));
        }
        let mut log = String::new();
        stderr.unwrap().read_to_string(&mut log).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(7), "{log}");
        let numbers = log
            .lines()
            .map_while(|line| line.get(..4)?.parse::<usize>().ok());
        assert!(numbers.eq(0..LINES), "{log}");
        let panic: Vec<&str> = log.lines().skip(LINES).collect();
        let panic = panic.join("\n");
        assert!(panic.starts_with("thread 'unlucky' panicked at"), "{panic}");
        assert!(panic.contains("a reason to end"), "{panic}");
    }
}
