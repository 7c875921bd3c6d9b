//! Other people's programs: run to their end, or found on this machine.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::io::Errno;

/// What a program printed and how it ended.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    pub fn assert_success(self) -> Finished {
        assert!(self.success(), "the command failed: {self:#?}");
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON on stdout ({error}): {self:#?}"))
    }
}

/// What programs that still run have printed.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Printed>>);

#[derive(Default)]
struct Printed {
    lines: Vec<String>,
    /// Whether nobody reads for now.
    paused: bool,
    /// The pipes that are still open, with the beginning of the line to come.
    pipes: Vec<(OwnedFd, Vec<u8>)>,
}

impl Lines {
    /// Nobody reads what is printed until that is taken back.
    pub fn pause(&self, paused: bool) {
        self.0.lock().unwrap().paused = paused;
    }

    /// Every line that has been written by now, be it still in the pipe.
    pub fn all(&self) -> Vec<String> {
        let mut printed = self.0.lock().unwrap();
        printed.drain();
        printed.lines.clone()
    }
}

impl Printed {
    fn drain(&mut self) {
        let Printed {
            lines,
            pipes,
            paused,
        } = self;
        if *paused {
            return;
        }
        pipes.retain_mut(|(pipe, rest)| {
            let mut buffer = [0; 16 * 1024];
            loop {
                match rustix::io::read(&*pipe, &mut buffer) {
                    Ok(0) => return false,
                    Ok(length) => rest.extend_from_slice(&buffer[..length]),
                    Err(Errno::INTR) => {}
                    Err(error) => return error == Errno::AGAIN,
                }
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    lines.push(String::from_utf8_lossy(&line[..end]).into_owned());
                }
            }
        });
    }
}

/// Adds each line that comes out of a pipe, until its end.
pub fn collect(pipe: impl Into<OwnedFd>, lines: &Lines) {
    let pipe = pipe.into();
    let number = pipe.as_raw_fd();
    rustix::io::ioctl_fionbio(&pipe, true).expect("not blocking");
    lines.0.lock().unwrap().pipes.push((pipe, Vec::new()));
    // To the pipe's end, whoever wants the lines: a full one would hold the program up, and a closed
    // one end it.
    let lines = lines.clone();
    std::thread::spawn(move || {
        loop {
            let mut printed = lines.0.lock().unwrap();
            printed.drain();
            let mut open = printed.pipes.iter();
            if open.all(|(pipe, _)| pipe.as_raw_fd() != number) {
                return;
            }
            drop(printed);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

/// Runs a program to its end without holding up the test's own servers.
pub async fn run(mut command: Command) -> Finished {
    let done = tokio::task::spawn_blocking(move || {
        let output = command.stdin(Stdio::null()).output();
        output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
    });
    let output = done.await.expect("the blocking task does not panic");
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The real curl, without the user's own settings.
pub async fn curl(arguments: &[&str]) -> Finished {
    let mut command = Command::new("curl");
    command.args(["--disable", "--silent", "--show-error", "--max-time", "20"]);
    command.args(arguments);
    run(command).await
}

/// openssl, which has to do what it was asked to.
pub async fn openssl(arguments: &[&str]) -> Finished {
    let mut command = Command::new("openssl");
    command.args(arguments);
    run(command).await.assert_success()
}

/// `openssl s_client`, ended right after the handshake.
pub async fn s_client(arguments: &[&str]) -> Finished {
    let mut command = Command::new("openssl");
    command.arg("s_client").args(arguments);
    run(command).await
}

/// The first of that name; see [`find_all`].
pub fn find(program: &str) -> Option<PathBuf> {
    find_all(program).next()
}

/// Looks in PATH and where `go install` and Debian put programs.
pub fn find_all(program: &str) -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Some(gopath) = std::env::var_os("GOPATH") {
        folders.push(Path::new(&gopath).join("bin"));
    }
    if let Some(home) = std::env::home_dir() {
        folders.push(home.join("go/bin"));
    }
    folders.push("/usr/sbin".into());
    let candidates = folders.into_iter().map(move |folder| folder.join(program));
    candidates.filter(|path| path.is_file())
}
