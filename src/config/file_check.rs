//! Whether the files that a configuration names are there and look like what they are for. Only
//! `perennial check` asks: a server starts without them and tries again.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use super::Config;
use super::diagnostic::{Diagnostic, Diagnostics, Place, Problem};

/// No certificate chain comes near this; it keeps a wrong path from being read whole.
const MAX_BYTES: u64 = 1 << 20;

/// A file or folder that a configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileReference {
    pub purpose: FilePurpose,
    pub path: PathBuf,
    pub place: Place,
}

/// What a [`FileReference`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilePurpose {
    DropFolder,
    /// `root` of a site or a route.
    Root,
    /// `output` of `[access_log]`.
    AccessLog,
    /// `certificate` of `[[certificates.files]]`.
    Certificate,
    /// `private_key` of `[[certificates.files]]`, or `certificate` where both are in one file.
    PrivateKey,
    /// `password_file` of `[[certificates.files]]`.
    Password,
    /// `ca_certificate` of `[acme]`.
    TrustAnchors,
    /// `program` of `[acme.dns]`.
    DnsProgram,
    /// `ca` of `client_auth`.
    ClientCa,
    /// `crl` of `client_auth`.
    ClientCrl,
    /// `ca` of `forward_auth`.
    AuthCa,
    /// `ca` of `upstream_tls`.
    UpstreamCa,
    /// `certificate` of `upstream_tls`.
    UpstreamCertificate,
    /// `private_key` of `upstream_tls`, or `certificate` where both are in one file.
    UpstreamPrivateKey,
    /// One of `session_ticket_key_files`.
    SessionTicketKey,
}

impl FileReference {
    /// A diagnostic about this file, in the form of all others.
    pub fn diagnostic(&self, message: String, help: Option<String>) -> Diagnostic {
        Diagnostic {
            place: self.place.clone(),
            message,
            help,
        }
    }

    fn check(&self) -> Result<(), Problem> {
        if self.purpose == FilePurpose::AccessLog {
            return self.check_log();
        }
        let metadata = self
            .path
            .metadata()
            .map_err(|error| self.unreadable(&error))?;
        if matches!(self.purpose, FilePurpose::DropFolder | FilePurpose::Root) {
            return match self.path.read_dir() {
                _ if !metadata.is_dir() => Err(self.wrong("is not a directory")),
                Ok(_) => Ok(()),
                Err(error) => Err(self.unreadable(&error)),
            };
        }
        // Before it is opened: to open a pipe waits for a writer.
        if !metadata.is_file() {
            return Err(self.wrong("is not a regular file"));
        }
        if self.purpose == FilePurpose::DnsProgram {
            return self.check_executable();
        }
        let mut content = Vec::new();
        File::open(&self.path)
            .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut content))
            .map_err(|error| self.unreadable(&error))?;
        self.check_content(&String::from_utf8_lossy(&content))
    }

    /// It is made where it is not there; its folder is not.
    fn check_log(&self) -> Result<(), Problem> {
        let folder = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        let folder = folder.unwrap_or(std::path::Path::new("."));
        if self.path.is_dir() {
            return Err(self.wrong("is a directory"));
        }
        match folder.is_dir() {
            true => Ok(()),
            false => Err(self
                .wrong(&format!("has no folder {}", folder.display()))
                .help("make it, and let the server's user write there")),
        }
    }

    fn check_executable(&self) -> Result<(), Problem> {
        let access = rustix::fs::access(&self.path, rustix::fs::Access::EXEC_OK);
        access.map_err(|_| {
            self.wrong("is not executable")
                .help(format!("chmod +x {}", self.path.display()))
        })
    }

    fn check_content(&self, content: &str) -> Result<(), Problem> {
        // Certificates and keys have many forms: whether a pair is one is for the module that
        // serves it to say.
        if matches!(
            self.purpose,
            FilePurpose::TrustAnchors | FilePurpose::AuthCa
        ) && !content.contains("-----BEGIN CERTIFICATE-----")
        {
            return Err(self.wrong("holds no PEM certificate"));
        }
        Ok(())
    }

    fn unreadable(&self, error: &std::io::Error) -> Problem {
        match error.kind() {
            std::io::ErrorKind::NotFound => self.wrong("does not exist").help(match self.purpose {
                FilePurpose::Root | FilePurpose::DropFolder => {
                    "make the folder, or correct the path"
                }
                _ => "put the file there, or correct the path",
            }),
            _ => self
                .wrong(&format!("cannot be read: {error}"))
                .help("the server's user must be able to read it"),
        }
    }

    fn wrong(&self, what: &str) -> Problem {
        let purpose = match self.purpose {
            FilePurpose::DropFolder => "drop folder",
            FilePurpose::Root => "root",
            FilePurpose::AccessLog => "access log",
            FilePurpose::Certificate => "certificate file",
            FilePurpose::PrivateKey => "private key file",
            FilePurpose::Password => "password file",
            FilePurpose::TrustAnchors => "ca_certificate",
            FilePurpose::DnsProgram => "DNS program",
            FilePurpose::ClientCa => "client CA bundle",
            FilePurpose::ClientCrl => "revocation list",
            FilePurpose::UpstreamCa => "upstream CA bundle",
            FilePurpose::AuthCa => "CA bundle of forward_auth",
            FilePurpose::UpstreamCertificate => "upstream client certificate",
            FilePurpose::UpstreamPrivateKey => "upstream client key",
            FilePurpose::SessionTicketKey => "session ticket key",
        };
        Problem::new(format!("the {purpose} {} {what}", self.path.display()))
    }
}

/// What is wrong with the files and folders that `config` names. Empty if all are there.
pub fn check_files(config: &Config) -> Diagnostics {
    let diagnostic = |file: &FileReference| {
        let problem = file.check().err()?;
        Some(file.diagnostic(problem.message, problem.help))
    };
    let mut found: Vec<Diagnostic> = Vec::new();
    for diagnostic in config.file_references.iter().filter_map(diagnostic) {
        // A combined file that is missing is missing once.
        let is_repeated = |one: &Diagnostic| one.place == diagnostic.place;
        if !found.iter().any(is_repeated) {
            found.push(diagnostic);
        }
    }
    Diagnostics::new(found)
}
