//! A certificate and its key on disk, as one unit: when to look at them again, and what a look
//! finds. Decides nothing about what is served.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration as StdDuration, Instant};

use boring::sha::sha256;
use time::{Duration, OffsetDateTime};

use super::certified_key::{CertifiedKey, CertifiedKeyError};
use super::inventory::EntryId;
use super::material::{Material, MaterialError, Password};
use super::observe::{self, Digest, MAX_FILE_BYTES, Observation, ReadError, Stamp};
use crate::clock;

/// A candidate that fails while its files changed less than this ago is being written, not
/// broken: certbot, lego and a person with `cp` write one file after the other.
pub const PATIENCE: Duration = Duration::seconds(5);

/// How soon a candidate is looked at again that is young, incomplete or in doubt.
pub const RECHECK: Duration = Duration::milliseconds(250);

/// One certificate's files and what the last look at them found.
#[derive(Debug)]
pub struct Unit {
    pub id: EntryId,
    /// `None`: a file of a drop folder for whose certificate no key was found.
    pub private_key: Option<Arc<Path>>,
    /// Its first line opens an encrypted key.
    password_file: Option<Box<Path>>,
    sight: Option<Sight>,
    /// The content of what is served now.
    served: Option<PairDigest>,
    /// Since when the candidate has been failing.
    failing_since: Option<OffsetDateTime>,
    recheck: bool,
    /// When time alone makes the candidate good.
    retry_at: Option<OffsetDateTime>,
    /// When the change was first seen that is not settled yet.
    seen: Option<Instant>,
}

/// The metadata of both files; `None` for a file that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    pub certificate: Option<Stamp>,
    pub private_key: Option<Stamp>,
}

/// The checksum of both files' checksums: there are many units.
pub type PairDigest = Digest;

/// A unit that has to be read, detached from its source so that reading needs no borrow.
#[derive(Clone, Debug)]
pub struct Task {
    pub id: EntryId,
    pub private_key: Option<Arc<Path>>,
    /// What the files hold, where they have just been read and had settled.
    pub certificate_content: Option<Arc<Content>>,
    pub key_content: Option<Arc<Content>>,
    pub password_file: Option<PathBuf>,
    pub served: Option<PairDigest>,
    /// What to say where no key fits: the folder that was searched.
    pub searched: Option<Arc<Path>>,
}

/// What reading a unit found.
#[derive(Debug)]
pub enum Finding {
    /// Neither file is there.
    Absent,
    /// The files hold what is served already.
    Same { young: bool },
    /// A whole, verified pair.
    Good {
        key: Box<CertifiedKey>,
        digest: PairDigest,
        young: bool,
        /// When the certificate file changed last.
        changed_at: OffsetDateTime,
    },
    /// Not a pair; `path` is the file at fault.
    Bad { path: PathBuf, cause: String },
}

/// What a finding comes to, now.
#[derive(Debug)]
pub enum Verdict {
    /// Nothing new, or not yet sure.
    Wait,
    /// What is served is what is on disk.
    Unchanged,
    Vanished,
    Replace(Replacement),
    Failed {
        path: PathBuf,
        cause: String,
    },
}

/// What is served when a finding is judged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Served<'a> {
    /// From the unit itself.
    pub key: Option<&'a CertifiedKey>,
    /// The longest chain, in certificates, from the unit itself or for a name of the finding from
    /// another file of the same source: certbot writes `cert.pem`, the key, and only then
    /// `fullchain.pem`, and in between the leaf alone is a pair.
    pub chain_length: usize,
}

/// A certificate to serve from now on.
#[derive(Debug)]
pub struct Replacement {
    pub key: Box<CertifiedKey>,
    /// When the certificate file changed last.
    pub changed_at: OffsetDateTime,
    /// The file that holds its private key.
    pub private_key: Option<Arc<Path>>,
    /// How long ago the change was first seen.
    pub seen: Option<StdDuration>,
}

impl Unit {
    pub fn new(id: EntryId, private_key: Option<Arc<Path>>) -> Unit {
        Unit {
            id,
            private_key,
            password_file: None,
            sight: None,
            served: None,
            failing_since: None,
            recheck: false,
            retry_at: None,
            seen: None,
        }
    }

    /// The same unit with a file whose first line opens an encrypted key.
    pub fn with_password_file(mut self, file: Option<PathBuf>) -> Unit {
        self.password_file = file.map(PathBuf::into_boxed_path);
        self
    }

    /// Whether both are made of the same files.
    pub fn has_files_of(&self, other: &Unit) -> bool {
        self.id == other.id
            && self.private_key == other.private_key
            && self.password_file == other.password_file
    }

    pub fn password_file(&self) -> Option<&Path> {
        self.password_file.as_deref()
    }

    /// Whether the unit has to be looked at again even if no metadata changes.
    pub fn needs_recheck(&self) -> bool {
        self.recheck
    }

    /// Whether what is on disk was not taken.
    pub fn is_failing(&self) -> bool {
        self.failing_since.is_some()
    }

    /// When the unit has to be looked at again although no file changes.
    pub fn retry_at(&self) -> Option<OffsetDateTime> {
        self.retry_at
    }

    /// Whether a good certificate was ever read from here.
    pub fn has_served(&self) -> bool {
        self.served.is_some()
    }

    /// The key file was found elsewhere than before.
    pub fn set_private_key(&mut self, private_key: Option<Arc<Path>>) {
        if self.private_key != private_key {
            self.private_key = private_key;
            self.sight = None;
        }
    }

    /// What the metadata says now, by asking the file system.
    pub fn stat(&self) -> Sight {
        Sight {
            certificate: observe::stat(&self.id.certificate),
            private_key: self.private_key.as_deref().and_then(observe::stat),
        }
    }

    /// Notes the metadata and says whether the files have to be read.
    pub fn look(&mut self, sight: Sight) -> bool {
        let changed = self.sight != Some(sight);
        if changed {
            self.sight = Some(sight);
            self.seen.get_or_insert_with(Instant::now);
        }
        // What failed may be cured by something that no metadata of these files shows.
        changed || self.recheck || self.failing_since.is_some()
    }

    pub fn task(&self, searched: Option<Arc<Path>>) -> Task {
        Task {
            id: self.id.clone(),
            private_key: self.private_key.clone(),
            certificate_content: None,
            key_content: None,
            password_file: self.password_file.as_deref().map(Path::to_owned),
            served: self.served,
            searched,
        }
    }

    /// Judges a finding: good material is taken, except a chain that has lost its intermediates and
    /// may still be growing (here or in the file beside this one), and except what is not valid now
    /// where what is `served` is. Bad material is reported once it has had `patience` to get better. What is gone has
    /// vanished, at each look anew, as long as it is `served`, and is missing otherwise.
    pub fn judge(
        &mut self,
        finding: Finding,
        served: Served<'_>,
        patience: Duration,
        now: OffsetDateTime,
    ) -> Verdict {
        let Served {
            key: served,
            chain_length: served_chain,
        } = served;
        self.retry_at = None;
        match finding {
            Finding::Absent if served.is_none() => {
                self.served = None;
                let cause = ReadError::Missing.to_string();
                self.fail(self.id.certificate.to_path_buf(), cause, patience, now)
            }
            Finding::Absent if self.is_patient(patience, now) => Verdict::Wait,
            Finding::Absent => {
                self.served = None;
                self.seen = None;
                Verdict::Vanished
            }
            Finding::Same { young } => {
                self.failing_since = None;
                self.recheck = young;
                self.seen = None;
                Verdict::Unchanged
            }
            Finding::Good { key, .. }
                if key.chain_length() < served_chain && self.is_patient(patience, now) =>
            {
                Verdict::Wait
            }
            Finding::Good { key, .. }
                if !key.is_valid_at(now) && served.is_some_and(|key| key.is_valid_at(now)) =>
            {
                // Whichever comes first makes it the better one: its start, or the other's end.
                let start = Some(key.not_before()).filter(|start| *start > now);
                self.retry_at = start
                    .into_iter()
                    .chain(served.map(CertifiedKey::not_after))
                    .min();
                self.fail(
                    self.id.certificate.to_path_buf(),
                    not_valid(&key, now),
                    patience,
                    now,
                )
            }
            Finding::Good {
                key,
                digest,
                young,
                changed_at,
            } => {
                self.failing_since = None;
                self.recheck = young;
                self.served = Some(digest);
                Verdict::Replace(Replacement {
                    key,
                    changed_at,
                    private_key: self.private_key.clone(),
                    seen: self.seen.take().map(|seen| seen.elapsed()),
                })
            }
            Finding::Bad { path, cause } => self.fail(path, cause, patience, now),
        }
    }

    fn fail(
        &mut self,
        path: PathBuf,
        cause: String,
        patience: Duration,
        now: OffsetDateTime,
    ) -> Verdict {
        if self.is_patient(patience, now) {
            Verdict::Wait
        } else {
            Verdict::Failed { path, cause }
        }
    }

    /// Whether a failure may still be a write under way; if so, another look is due soon.
    fn is_patient(&mut self, patience: Duration, now: OffsetDateTime) -> bool {
        // The clock may have been set back: patience must not last until it is where it was.
        let since = self.failing_since.map_or(now, |since| since.min(now));
        self.failing_since = Some(since);
        self.recheck = now - since < patience;
        self.recheck
    }
}

fn not_valid(key: &CertifiedKey, now: OffsetDateTime) -> String {
    if now < key.not_before() {
        let start = clock::rfc3339(key.not_before());
        format!(
            "holds a certificate that is not valid before {start}; the one in service stays until then"
        )
    } else {
        let end = clock::rfc3339(key.not_after());
        format!("holds a certificate that expired at {end}; the one in service is valid and stays")
    }
}

/// What a file held when it was read.
pub struct Content {
    pub material: Material,
    pub observation: Observation,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content")
            .field("observation", &self.observation)
            .finish_non_exhaustive()
    }
}

/// A file at fault and what is wrong with it.
type Fault = (PathBuf, String);

/// Reads and verifies an explicit pair. The error is the file at fault and what is wrong with it.
pub fn read_pair(
    certificate: &Path,
    private_key: &Path,
    password_file: Option<&Path>,
    now: OffsetDateTime,
) -> Result<CertifiedKey, Fault> {
    let id = EntryId {
        source: super::table::SourceKind::File,
        certificate: certificate.into(),
    };
    let task = Unit::new(id, Some(private_key.into()))
        .with_password_file(password_file.map(Path::to_owned))
        .task(None);
    match task.try_examine(now)? {
        Finding::Good { key, .. } => Ok(*key),
        // Nothing was served from it before, so it cannot be the same.
        _ => Err((certificate.to_owned(), ReadError::Missing.to_string())),
    }
}

impl Task {
    /// Reads and verifies both files.
    pub fn examine(&self, now: OffsetDateTime) -> Finding {
        match self.try_examine(now) {
            Ok(finding) => finding,
            Err((path, cause)) => Finding::Bad { path, cause },
        }
    }

    /// [`examine`](Self::examine) with everything read again.
    pub fn examine_afresh(&self, now: OffsetDateTime) -> Finding {
        let task = Task {
            certificate_content: None,
            key_content: None,
            ..self.clone()
        };
        task.examine(now)
    }

    fn try_examine(&self, now: OffsetDateTime) -> Result<Finding, Fault> {
        let password = self.password(now)?;
        let read = |path: &Path, known: &Option<Arc<Content>>| match known {
            Some(content) => Ok(content.clone()),
            None => read_content(path, password.as_ref(), now).map(Arc::new),
        };
        let path = &*self.id.certificate;
        let certificate = read(path, &self.certificate_content);
        let Some(key_path) = &self.private_key else {
            return self.without_key(certificate);
        };
        let private_key = if key_path == &self.id.certificate {
            certificate.clone()
        } else {
            read(key_path, &self.key_content)
        };
        // In a drop folder the certificate is the unit, and a key by itself nothing.
        let is_missing = |content: &Result<Arc<Content>, ContentError>| {
            content.as_ref().is_err_and(ContentError::is_missing)
        };
        if is_missing(&certificate) && (self.searched.is_some() || is_missing(&private_key)) {
            return Ok(Finding::Absent);
        }
        let certificate = certificate.map_err(|error| error.at(path))?;
        let private_key = private_key.map_err(|error| error.at(key_path))?;
        self.compare(&certificate, &private_key, key_path)
    }

    fn compare(
        &self,
        certificate: &Content,
        private_key: &Content,
        key_path: &Path,
    ) -> Result<Finding, Fault> {
        let digests = [&certificate.observation, &private_key.observation].map(|it| it.digest);
        let digest = sha256(digests.as_flattened());
        let young = certificate.observation.young || private_key.observation.young;
        if self.served == Some(digest) {
            return Ok(Finding::Same { young });
        }
        let key = CertifiedKey::from_materials(&certificate.material, &private_key.material);
        let key = key.map_err(|error| {
            let path = match &error {
                CertifiedKeyError::NoKey | CertifiedKeyError::KeyMismatch { .. } => key_path,
                _ => &self.id.certificate,
            };
            (path.to_owned(), error.to_string())
        })?;
        Ok(Finding::Good {
            key: Box::new(key),
            digest,
            young,
            changed_at: certificate.observation.stamp.changed_at(),
        })
    }

    fn without_key(
        &self,
        certificate: Result<Arc<Content>, ContentError>,
    ) -> Result<Finding, Fault> {
        let fault = |cause: String| (self.id.certificate.to_path_buf(), cause);
        let content = match certificate {
            Err(error) if error.is_missing() => return Ok(Finding::Absent),
            Err(error) => return Err(error.at(&self.id.certificate)),
            Ok(content) => content,
        };
        if content.material.certificates.is_empty() {
            return Err(fault(CertifiedKeyError::NoCertificate.to_string()));
        }
        let place = match &self.searched {
            Some(folder) => folder.display().to_string(),
            None => "the same place".to_owned(),
        };
        Err(fault(format!(
            "no private key in {place} matches its certificate"
        )))
    }

    fn password(&self, now: OffsetDateTime) -> Result<Option<Password>, Fault> {
        let Some(path) = &self.password_file else {
            return Ok(None);
        };
        let (bytes, _) = observe::read(path, now)
            .map_err(|error| (path.clone(), format!("(the password file) {error}")))?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(Some(Password::from_file_content(&text)))
    }
}

/// Why a file gave no content.
#[derive(Clone, Debug)]
enum ContentError {
    Read(Arc<ReadError>),
    Material(MaterialError),
}

impl ContentError {
    fn is_missing(&self) -> bool {
        matches!(self, ContentError::Read(error) if matches!(**error, ReadError::Missing))
    }

    fn at(self, path: &Path) -> Fault {
        let cause = match self {
            ContentError::Read(error) => error.to_string(),
            ContentError::Material(error) => error.to_string(),
        };
        (path.to_owned(), cause)
    }
}

fn read_content(
    path: &Path,
    password: Option<&Password>,
    now: OffsetDateTime,
) -> Result<Content, ContentError> {
    let failed = |error: ReadError| ContentError::Read(Arc::new(error));
    let (bytes, observation) = observe::read_resolved(MAX_FILE_BYTES, path, now).map_err(failed)?;
    let material = Material::parse(&bytes, password).map_err(ContentError::Material)?;
    Ok(Content {
        material,
        observation,
    })
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::certificate::table::SourceKind;
    use crate::certificate::testing::Request;

    const NOW: OffsetDateTime = datetime!(2027-01-01 12:00 UTC);

    fn unit() -> Unit {
        let id = EntryId {
            source: SourceKind::File,
            certificate: Path::new("a").into(),
        };
        Unit::new(id, None)
    }

    #[test]
    fn what_vanished_is_not_missing_as_long_as_it_is_served() {
        let key = || Request::new(&["a.test"], NOW).issue().certified_key();
        let good = Finding::Good {
            key: Box::new(key()),
            digest: [0; 32],
            young: false,
            changed_at: NOW,
        };
        let (mut unit, served) = (unit(), key());
        let verdict = unit.judge(good, Served::default(), PATIENCE, NOW);
        assert!(matches!(verdict, Verdict::Replace(_)));
        let mut look = |key, after| {
            let now = NOW + Duration::seconds(after);
            let served = Served {
                key,
                chain_length: 1,
            };
            unit.judge(Finding::Absent, served, PATIENCE, now)
        };
        assert!(matches!(look(Some(&served), 0), Verdict::Wait));
        assert!(matches!(look(Some(&served), 6), Verdict::Vanished));
        assert!(matches!(look(Some(&served), 11), Verdict::Vanished));
        // Once something better is there it is a pair like any other that never was.
        assert!(matches!(look(None, 16), Verdict::Failed { .. }));
    }

    #[test]
    fn patience_does_not_wait_for_a_clock_that_was_set_back() {
        let mut unit = unit();
        let mut judge = |now| {
            let finding = Finding::Bad {
                path: "a".into(),
                cause: "is empty".to_owned(),
            };
            let verdict = unit.judge(finding, Served::default(), PATIENCE, now);
            (
                matches!(verdict, Verdict::Failed { .. }),
                unit.needs_recheck(),
            )
        };
        assert_eq!(judge(NOW), (false, true));
        let earlier = NOW - Duration::DAY;
        assert_eq!(judge(earlier), (false, true));
        assert_eq!(judge(earlier + PATIENCE), (true, false));
        assert_eq!(judge(NOW), (true, false));
    }
}
