//! The program under test as a child process: started, signalled, killed, asked.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::admin_api::client;
use super::command::{self, Finished, Lines};
use super::place::Place;
use super::wait::{SOON, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_perennial");
const LOG_LINES_SHOWN: usize = 80;

/// Killed when dropped; if the test has failed by then, the end of its log is printed.
pub struct Perennial {
    pub place: Place,
    program: String,
    before: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log_level: Option<&'static str>,
    child: Option<Child>,
    /// Processes that have taken over from it.
    successors: Vec<Pid>,
    /// Listening sockets for it, with their names, as systemd passes them.
    passed: Vec<(OwnedFd, String)>,
    log: Lines,
}

/// Gives its standard input and output to a program as the descriptors 3 and 4, as sd_listen_fds(3)
/// has it.
const PASS: &str =
    "exec 3<&0 4>&1 </dev/null >/dev/null; LISTEN_PID=$$; export LISTEN_PID; exec \"$@\"";

impl Perennial {
    /// `perennial run` with the place's `[server]` table followed by `rest`. Not started yet.
    pub fn with_config(place: Place, rest: &str) -> Perennial {
        let text = format!("{}{rest}", place.server_table());
        let file = place.write("perennial.toml", text);
        Self::with_arguments(place, &["run", "--config", &file.display().to_string()])
    }

    /// `perennial proxy` on the place's addresses. Not started yet.
    pub fn with_proxy(place: Place, arguments: &[&str]) -> Perennial {
        let (http, https) = (place.http.to_string(), place.https.to_string());
        let (admin, state) = (place.admin.to_string(), place.state());
        let state = state.display().to_string();
        let mut all = vec!["proxy", "--http-listen", &http, "--https-listen", &https];
        all.extend(["--admin-listen", &admin, "--state-dir", &state]);
        all.extend(arguments);
        Self::with_arguments(place, &all)
    }

    fn with_arguments(place: Place, arguments: &[&str]) -> Perennial {
        Perennial {
            place,
            program: PROGRAM.to_owned(),
            before: Vec::new(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            environment: Vec::new(),
            log_level: Some("debug"),
            child: None,
            successors: Vec::new(),
            passed: Vec::new(),
            log: Lines::default(),
        }
    }

    /// Started and serving: `perennial run`.
    pub async fn run(place: Place, rest: &str) -> Perennial {
        let mut perennial = Self::with_config(place, rest);
        perennial.start_and_wait().await;
        perennial
    }

    pub fn env(mut self, key: &str, value: &str) -> Perennial {
        self.environment.push((key.into(), value.into()));
        self
    }

    /// Passes a listening socket to it; two at most.
    pub fn pass(mut self, name: &str, socket: impl Into<OwnedFd>) -> Perennial {
        self.passed.push((socket.into(), name.to_owned()));
        self
    }

    /// Another `--log-level` than `debug`, or none.
    pub fn log_level(mut self, level: Option<&'static str>) -> Perennial {
        self.log_level = level;
        self
    }

    /// Another file than the one that was built.
    pub fn program_file(mut self, file: &Path) -> Perennial {
        self.program = file.display().to_string();
        self
    }

    /// Puts a program such as `setpriv` in front.
    pub fn through(mut self, before: &[&str]) -> Perennial {
        self.before = before.iter().map(ToString::to_string).collect();
        self
    }

    pub fn set_env(&mut self, key: &str, value: &str) {
        self.environment.push((key.into(), value.into()));
    }

    pub fn forget_env(&mut self) {
        self.environment.clear();
    }

    /// `perennial run` with exactly this configuration; the place's addresses must be in it where
    /// the test asks them. Not started yet.
    pub fn with_whole_config(place: Place, text: &str) -> Perennial {
        let file = place.write("perennial.toml", text);
        Self::with_arguments(place, &["run", "--config", &file.display().to_string()])
    }

    /// Replaces everything after the `[server]` table.
    pub fn rewrite_config(&self, rest: &str) {
        let text = format!("{}{rest}", self.place.server_table());
        self.place.write("perennial.toml", text);
    }

    pub fn start(&mut self) {
        let mut words = self.before.clone();
        if !self.passed.is_empty() {
            words.extend(["sh", "-c", PASS, "sh"].map(str::to_owned));
        }
        words.push(self.program.clone());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(&self.arguments);
        if let Some(level) = self.log_level {
            command.args(["--log-level", level]);
        }
        command.env_remove("RUST_LOG").env("RUST_BACKTRACE", "1");
        command.envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if !self.passed.is_empty() {
            let names: Vec<&str> = self.passed.iter().map(|(_, name)| name.as_str()).collect();
            command.env("LISTEN_FDS", names.len().to_string());
            command.env("LISTEN_FDNAMES", names.join(":"));
            let mut sockets = self.passed.iter();
            let mut next = || Some(sockets.next()?.0.try_clone().expect("a descriptor"));
            command.stdin(next().map_or(Stdio::null(), Stdio::from));
            command.stdout(next().map_or(Stdio::null(), Stdio::from));
        }
        let mut child = command.stderr(Stdio::piped()).spawn().expect(PROGRAM);
        command::collect(child.stderr.take().expect("a pipe"), &self.log);
        self.child = Some(child);
    }

    pub async fn start_and_wait(&mut self) {
        self.start();
        self.wait_healthy().await;
    }

    /// The same state, configuration and addresses; what ran before is killed.
    pub async fn restart(&mut self) {
        self.kill9();
        self.start_and_wait().await;
    }

    /// Has a new process take over; its id.
    pub async fn upgrade(&mut self) -> u32 {
        let upgraded = self.cli(&["upgrade"]).await.assert_success();
        let words: Vec<&str> = upgraded.stdout.split_whitespace().collect();
        let pid = words[1].parse().unwrap_or_else(|_| panic!("{upgraded:?}"));
        self.adopt(pid);
        pid
    }

    /// Kills this process, too, in the end: it is a descendant of the one that was started.
    pub fn adopt(&mut self, pid: u32) {
        let pid = i32::try_from(pid).expect("a process id");
        self.successors
            .push(Pid::from_raw(pid).expect("a process id"));
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it was started").id()
    }

    pub fn kill9(&mut self) {
        for pid in self.successors.drain(..) {
            // It may have ended.
            let _ = kill_process(pid, Signal::KILL);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn process_id(&self) -> u32 {
        self.child.as_ref().expect("it was started").id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process_id()).expect("a process id");
        kill_process(Pid::from_raw(pid).expect("a process id"), signal).expect("it runs");
    }

    fn proc(&self, file: &str) -> std::path::PathBuf {
        let child = self.child.as_ref().expect("it was started");
        format!("/proc/{}/{file}", child.id()).into()
    }

    /// What it holds in memory.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(self.proc("status")).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect("kB") * 1024
    }

    /// Whether it has this file open.
    pub fn has_open(&self, file: &std::path::Path) -> bool {
        let open = std::fs::read_dir(self.proc("fd")).expect("its files");
        let mut targets = open.flatten().map(|entry| std::fs::read_link(entry.path()));
        targets.any(|target| target.is_ok_and(|target| target == file))
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut().expect("it was started");
        child.try_wait().expect("its status")
    }

    pub async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        wait_until(deadline, "the program to exit", async || self.exited()).await
    }

    /// Until the process serves: `GET /healthz` answers 200.
    pub async fn wait_healthy(&mut self) {
        self.wait_for_200("/healthz").await;
    }

    /// Until every host has a certificate: `GET /readyz` answers 200.
    pub async fn wait_ready(&mut self) {
        self.wait_for_200("/readyz").await;
    }

    async fn wait_for_200(&mut self, path: &str) {
        wait_until(SOON, path, async || {
            if let Some(status) = self.exited() {
                panic!("perennial ended by itself: {status}");
            }
            let url = format!("http://{}{path}", self.place.admin);
            let response = client().get(url).send().await.ok()?;
            (response.status() == 200).then_some(())
        })
        .await;
    }

    /// Another command of the program, pointed at this one's admin address.
    pub async fn cli(&self, arguments: &[&str]) -> Finished {
        let admin = self.place.admin.to_string();
        cli(&[arguments, &["--admin", &admin]].concat()).await
    }

    /// Whether anybody reads what it says.
    pub fn read_log(&self, read: bool) {
        self.log.pause(!read);
    }

    pub fn log(&self) -> Vec<String> {
        self.log.all()
    }

    pub fn log_lines_with(&self, pattern: &str) -> Vec<String> {
        let lines = self.log().into_iter();
        lines.filter(|line| line.contains(pattern)).collect()
    }

    pub async fn wait_for_log(&self, pattern: &str, deadline: Duration) -> String {
        let what = format!("a log line with {pattern:?}");
        wait_until(deadline, &what, async || {
            self.log_lines_with(pattern).into_iter().next()
        })
        .await
    }
}

impl Drop for Perennial {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            // Tests that poll for a certificate make a line each time.
            let mut log = self.log();
            let polls = ["TLS handshake client=", "HTTP/2 connection client="];
            log.retain(|line| !polls.iter().any(|poll| line.contains(poll)));
            let from = log.len().saturating_sub(LOG_LINES_SHOWN);
            eprintln!("--- the end of perennial's log ---");
            log[from..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Any command of the program, run to its end.
pub async fn cli(arguments: &[&str]) -> Finished {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).env("RUST_BACKTRACE", "1");
    command::run(command).await
}

pub fn program() -> &'static str {
    PROGRAM
}
