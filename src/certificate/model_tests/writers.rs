//! What other programs and people do to certificate files, as scripts of single steps between
//! which the reloader may look.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngCore};

use super::pool::Pool;

/// Every padded text has this length, so that size says nothing.
const PADDED: usize = 4096;

/// Larger than any file that is read.
const HUGE: u64 = 2 << 20;

/// Where somebody keeps a certificate and its key.
#[derive(Clone, Debug)]
pub enum Place {
    /// Two files, or twice the same.
    Files { certificate: PathBuf, key: PathBuf },
    /// A Kubernetes secret: `tls.crt` and `tls.key` lead through `..data`.
    Mount(PathBuf),
    /// certbot's: links in the first directory lead to numbered files in the second.
    Live(PathBuf, PathBuf),
    /// `<name>/<key_type>` of the state directory.
    Generation(PathBuf),
}

/// One step of a writer.
#[derive(Clone, Debug)]
pub enum Step {
    /// Truncates and writes, as `cp` does it.
    Put(PathBuf, String),
    Append(PathBuf, String),
    /// The modification time is set to one long past, as `rsync -t` and `cp -p` do it.
    Age(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    Directory(PathBuf),
    /// A link, and where it leads; made anew even if it is there.
    Link(PathBuf, PathBuf),
    Huge(PathBuf),
}

impl Step {
    /// Does it, and adds the paths that file events would name. A step that cannot be done (what
    /// it is about is gone) is left out, as a program would end with an error there.
    pub fn run(&self, events: &mut BTreeSet<PathBuf>) {
        let _ = match self {
            Step::Put(path, text) => make_room(path).and_then(|()| fs::write(path, text)),
            Step::Append(path, text) => File::options()
                .append(true)
                .open(path)
                .and_then(|mut file| file.write_all(text.as_bytes())),
            Step::Age(path) => File::options()
                .append(true)
                .open(path)
                .and_then(|file| file.set_modified(UNIX_EPOCH + Duration::from_secs(1))),
            Step::Rename(from, to) => rename(from, to),
            Step::Remove(path) => remove(path),
            Step::Directory(path) => fs::create_dir_all(path),
            Step::Link(path, target) => remove(path).and_then(|()| symlink(target, path)),
            Step::Huge(path) => make_room(path)
                .and_then(|()| File::create(path))
                .and_then(|file| file.set_len(HUGE)),
        };
        // What is written through a link happens where the link leads.
        let targets = self
            .paths()
            .into_iter()
            .filter_map(|path| fs::canonicalize(path).ok());
        let targets: Vec<PathBuf> = targets.collect();
        let paths = self.paths();
        for path in paths
            .into_iter()
            .chain(targets.iter().map(PathBuf::as_path))
        {
            let hidden = path.file_name().unwrap().as_encoded_bytes();
            let path = match hidden.starts_with(b"..") {
                true => path.parent().unwrap(),
                false => path,
            };
            events.insert(path.to_owned());
        }
    }

    fn paths(&self) -> Vec<&Path> {
        match self {
            Step::Rename(from, to) => vec![from, to],
            Step::Put(path, _)
            | Step::Append(path, _)
            | Step::Age(path)
            | Step::Remove(path)
            | Step::Directory(path)
            | Step::Link(path, _)
            | Step::Huge(path) => vec![path],
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Put(path, text) => write!(f, "put {} bytes into {path:?}", text.len()),
            Step::Append(path, text) => write!(f, "append {} bytes to {path:?}", text.len()),
            other => write!(f, "{other:?}"),
        }
    }
}

/// A directory that stands where a file is to be is taken away, and a link that leads nowhere.
fn make_room(path: &Path) -> std::io::Result<()> {
    match path.is_dir() || (path.is_symlink() && !path.exists()) {
        true => remove(path),
        false => Ok(()),
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> std::io::Result<()> {
    if to.is_dir() && !to.is_symlink() && !from.is_dir() {
        remove(to)?;
    }
    fs::rename(from, to)
}

/// A text for each of the two files; the same one twice for a combined file.
struct Texts {
    certificate: String,
    key: String,
}

impl Place {
    /// The paths by which a server would be told of the files.
    pub fn paths(&self) -> (PathBuf, PathBuf) {
        match self {
            Place::Files { certificate, key } => (certificate.clone(), key.clone()),
            Place::Mount(directory) => (directory.join("tls.crt"), directory.join("tls.key")),
            Place::Live(live, _) => (live.join("fullchain.pem"), live.join("privkey.pem")),
            Place::Generation(directory) => {
                let current = directory.join("current");
                (current.join("fullchain.pem"), current.join("privkey.pem"))
            }
        }
    }

    /// Puts another certificate and its key there, in one of the ways in which this is done.
    pub fn renew(&self, pool: &Pool, rng: &mut StdRng) -> VecDeque<Step> {
        let texts = self.texts(pool, rng);
        let steps = match self {
            Place::Files { certificate, key } if certificate == key => {
                write_file(certificate, &texts.certificate, rng)
            }
            Place::Files { certificate, key } => {
                if rng.random_ratio(1, 6) {
                    replace_directory(certificate, key, &texts, rng)
                } else {
                    let mut files = [(certificate, &texts.certificate), (key, &texts.key)];
                    files.shuffle(rng);
                    let steps = files.iter().map(|(path, text)| write_file(path, text, rng));
                    steps.flatten().collect()
                }
            }
            Place::Mount(directory) => swap_data(directory, &texts, rng),
            Place::Live(live, archive) => turn_links(live, archive, &texts, rng),
            Place::Generation(directory) => next_generation(directory, &texts, rng),
        };
        steps.into()
    }

    fn texts(&self, pool: &Pool, rng: &mut StdRng) -> Texts {
        let item = pool.items.choose(rng).unwrap();
        let mut certificate = item.leaf.clone();
        if rng.random_ratio(2, 3) {
            certificate.push_str(&pool.intermediate);
        }
        let mut key = pool.keys[item.key].clone();
        let (certificate_path, key_path) = self.paths();
        if certificate_path == key_path {
            certificate = match rng.random() {
                true => certificate + &key,
                false => key.clone() + &certificate,
            };
        }
        if rng.random_ratio(2, 3) {
            for text in [&mut certificate, &mut key] {
                *text = format!("{text:\n<PADDED$}");
            }
        }
        Texts { certificate, key }
    }

    /// Does something to the files after which they are no pair any more, or hardly.
    pub fn harm(&self, pool: &Pool, rng: &mut StdRng) -> VecDeque<Step> {
        let (certificate, key) = self.paths();
        let path = match rng.random() {
            true => certificate.clone(),
            false => key.clone(),
        };
        let current = fs::read_to_string(&path).unwrap_or_default();
        let block = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let steps = match rng.random_range(0..12) {
            0 => vec![Step::Put(path, "<html>404</html>\n".to_owned())],
            1 => vec![Step::Put(path, String::new())],
            2 => vec![Step::Put(path, block.to_owned())],
            3 => vec![Step::Put(path, current[..current.len() / 2].to_owned())],
            4 => vec![Step::Put(path, pool.keys.choose(rng).unwrap().clone())],
            5 => vec![Step::Put(
                path,
                pool.items.choose(rng).unwrap().leaf.clone(),
            )],
            6 => vec![Step::Remove(path)],
            7 => vec![Step::Remove(certificate), Step::Remove(key)],
            8 => vec![Step::Remove(path.clone()), Step::Directory(path)],
            9 => vec![Step::Link(path, "nowhere/at-all".into())],
            10 => vec![Step::Huge(path)],
            // The leaf alone: a chain that lost its intermediates, or is still growing.
            _ => {
                let end = "-----END CERTIFICATE-----\n";
                let end = current.find(end).map_or(current.len(), |at| at + end.len());
                vec![Step::Put(path, current[..end].to_owned())]
            }
        };
        steps.into()
    }
}

/// One file gets another content.
fn write_file(path: &Path, text: &str, rng: &mut StdRng) -> Vec<Step> {
    let path = path.to_owned();
    let text = text.to_owned();
    let beside = |prefix: &str, suffix: &str| {
        let name = path.file_name().unwrap().to_str().unwrap();
        path.with_file_name(format!("{prefix}{name}{suffix}"))
    };
    let temporary = match rng.random() {
        true => beside(".", ".tmp"),
        false => beside("", ".new"),
    };
    match rng.random_range(0..10) {
        0 => {
            let (head, tail) = text.split_at(rng.random_range(0..text.len()));
            vec![
                Step::Put(path.clone(), head.to_owned()),
                Step::Append(path, tail.to_owned()),
            ]
        }
        1 => vec![Step::Put(path, text)],
        2 => vec![
            Step::Put(temporary.clone(), text),
            Step::Rename(temporary, path),
        ],
        3 | 8 => vec![
            Step::Put(temporary.clone(), text),
            Step::Age(temporary.clone()),
            Step::Rename(temporary, path),
        ],
        4 | 9 => vec![Step::Put(path.clone(), text), Step::Age(path)],
        5 => vec![
            Step::Rename(path.clone(), beside("", "~")),
            Step::Put(path, text),
        ],
        6 => vec![Step::Remove(path.clone()), Step::Put(path, text)],
        _ => {
            let version = beside("", &format!(".{}", rng.random_range(0..3)));
            let name = version.file_name().unwrap().into();
            vec![
                Step::Remove(version.clone()),
                Step::Put(version, text),
                Step::Link(temporary.clone(), name),
                Step::Rename(temporary, path),
            ]
        }
    }
}

/// A directory with both files takes the place of the one that is there.
fn replace_directory(certificate: &Path, key: &Path, texts: &Texts, rng: &mut StdRng) -> Vec<Step> {
    let directory = certificate.parent().unwrap();
    let name = directory.file_name().unwrap().to_str().unwrap();
    let dot = if rng.random() { "." } else { "" };
    let (new, old) = (
        directory.with_file_name(format!("{dot}{name}.new")),
        directory.with_file_name(format!("{dot}{name}.old")),
    );
    vec![
        Step::Remove(new.clone()),
        Step::Directory(new.clone()),
        Step::Put(
            new.join(certificate.file_name().unwrap()),
            texts.certificate.clone(),
        ),
        Step::Put(new.join(key.file_name().unwrap()), texts.key.clone()),
        Step::Remove(old.clone()),
        Step::Rename(directory.to_owned(), old.clone()),
        Step::Rename(new, directory.to_owned()),
        Step::Remove(old),
    ]
}

fn swap_data(directory: &Path, texts: &Texts, rng: &mut StdRng) -> Vec<Step> {
    let data = format!("..{}", rng.next_u32());
    let old = fs::read_link(directory.join("..data"));
    let mut steps = vec![
        Step::Directory(directory.join(&data)),
        Step::Put(
            directory.join(&data).join("tls.crt"),
            texts.certificate.clone(),
        ),
        Step::Put(directory.join(&data).join("tls.key"), texts.key.clone()),
        Step::Link(directory.join("..data_tmp"), data.into()),
        Step::Rename(directory.join("..data_tmp"), directory.join("..data")),
    ];
    for file in ["tls.crt", "tls.key"] {
        let target = Path::new("..data").join(file);
        // Kubernetes makes these once; here they may have been harmed.
        if fs::read_link(directory.join(file)).ok().as_ref() != Some(&target) {
            steps.push(Step::Link(directory.join(file), target));
        }
    }
    steps.extend(old.map(|old| Step::Remove(directory.join(old))));
    steps
}

fn turn_links(live: &Path, archive: &Path, texts: &Texts, rng: &mut StdRng) -> Vec<Step> {
    let number = rng.next_u32();
    let mut files = [
        ("fullchain.pem", &texts.certificate),
        ("privkey.pem", &texts.key),
    ];
    files.shuffle(rng);
    let numbered = |file: &str| archive.join(format!("{number}-{file}"));
    let mut steps = vec![Step::Directory(archive.to_owned())];
    for (file, text) in files {
        steps.push(Step::Put(numbered(file), text.clone()));
    }
    for (file, _) in files {
        steps.push(Step::Link(live.join(file), numbered(file)));
    }
    steps
}

fn next_generation(directory: &Path, texts: &Texts, rng: &mut StdRng) -> Vec<Step> {
    let name = format!("{}", rng.next_u32());
    let new = directory.join(&name);
    let source = if rng.random() { "internal" } else { "acme" };
    let meta = format!(r#"{{"source":"{source}"}}"#);
    let old = fs::read_link(directory.join("current"));
    let mut steps = vec![
        Step::Directory(new.clone()),
        Step::Put(new.join("fullchain.pem"), texts.certificate.clone()),
        Step::Put(new.join("privkey.pem"), texts.key.clone()),
        Step::Put(new.join("meta.json"), meta),
        Step::Link(directory.join(".current.tmp"), name.into()),
        Step::Rename(directory.join(".current.tmp"), directory.join("current")),
    ];
    if rng.random() {
        steps.extend(old.map(|old| Step::Remove(directory.join(old))));
    }
    steps
}
