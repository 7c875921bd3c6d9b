//! One visit with `openssl s_client`: a request over a new or a resumed session, with or without a
//! client certificate.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::certs::Leaf;
use super::place::Place;

/// Who visits, and how.
#[derive(Clone, Default)]
pub struct Visitor {
    arguments: Vec<String>,
}

/// What came of a visit.
#[derive(Debug)]
pub struct Visit {
    /// Of the answer, if there was one.
    pub status: Option<u16>,
    pub reused: bool,
    /// Everything that openssl said: alerts are in there.
    pub output: String,
}

impl Visitor {
    pub fn new() -> Visitor {
        Visitor::default()
    }

    fn with(mut self, arguments: &[&str]) -> Visitor {
        self.arguments
            .extend(arguments.iter().map(ToString::to_string));
        self
    }

    pub fn tls12(self) -> Visitor {
        self.with(&["-tls1_2"])
    }

    /// Shows this certificate when asked.
    pub fn showing(self, place: &Place, name: &str, leaf: &Leaf) -> Visitor {
        let certificate = place.write(format!("{name}.pem"), &leaf.certificate_pem);
        let key = place.write(format!("{name}.key"), &leaf.key_pem);
        self.with(&["-cert", &text(&certificate), "-key", &text(&key)])
    }

    /// Keeps the session.
    pub fn keeping(self, file: &Path) -> Visitor {
        self.with(&["-sess_out", &text(file)])
    }

    /// Offers a session that was kept.
    pub fn offering(self, file: &Path) -> Visitor {
        assert!(file.exists(), "no session was kept");
        self.with(&["-sess_in", &text(file)])
    }

    /// Asks for `/` of the host that is also the server name.
    pub async fn visit(&self, addr: SocketAddr, host: &str) -> Visit {
        self.visit_as(addr, host, host).await
    }

    pub async fn visit_as(&self, addr: SocketAddr, server_name: &str, host: &str) -> Visit {
        let mut request = tempfile::tempfile().expect("a file");
        let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        std::io::Write::write_all(&mut request, text.as_bytes()).expect("written");
        std::io::Seek::rewind(&mut request).expect("rewound");
        let mut command = Command::new("openssl");
        command.args(["s_client", "-ign_eof", "-connect", &addr.to_string()]);
        command
            .args(["-servername", server_name])
            .args(&self.arguments);
        command.stdin(Stdio::from(request));
        let done = tokio::task::spawn_blocking(move || command.output().expect("openssl"));
        let output = done.await.expect("no panic");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let answer = stdout.split("HTTP/1.1 ").nth(1);
        Visit {
            status: answer.and_then(|rest| rest.get(..3)?.parse().ok()),
            reused: stdout.contains("\nReused, TLS"),
            output: format!("{stdout}\n{stderr}"),
        }
    }
}

fn text(path: &Path) -> String {
    PathBuf::from(path).display().to_string()
}

impl Visit {
    #[track_caller]
    pub fn assert_answered(&self) -> &Visit {
        assert_eq!(self.status, Some(200), "{}", self.output);
        self
    }

    #[track_caller]
    pub fn assert_reused(&self) -> &Visit {
        assert!(self.reused, "{}", self.output);
        self
    }

    #[track_caller]
    pub fn assert_new(&self) -> &Visit {
        assert!(!self.reused, "{}", self.output);
        self
    }

    /// Not answered, and the alert says why.
    #[track_caller]
    pub fn assert_refused(&self, alert: &str) {
        assert_eq!(self.status, None, "{}", self.output);
        assert!(
            self.output.contains(alert),
            "no {alert:?} in {}",
            self.output
        );
    }
}
