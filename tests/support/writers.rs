//! How other programs put certificates on disk: with `cp`, as certbot links them, as Kubernetes
//! swaps them, slowly.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::certs::Leaf;
use super::command;

/// `cp`, the program: truncates the target and writes it again, same inode.
pub async fn cp(contents: &str, to: &Path) {
    let mut source = tempfile::NamedTempFile::new().expect("a file");
    source.write_all(contents.as_bytes()).expect("written");
    let mut copy = Command::new("cp");
    copy.arg("--").arg(source.path()).arg(to);
    command::run(copy).await.assert_success();
}

/// A program that copies files: `rsync -t`, `cp -p`, `install`.
pub async fn copy_by(program: &[&str], sources: &[&Path], to: &Path) {
    let mut copy = Command::new(program[0]);
    copy.args(&program[1..]).arg("--").args(sources).arg(to);
    command::run(copy).await.assert_success();
}

/// Gives a file an older modification time, as one that was made elsewhere has.
pub fn backdate(path: &Path, modified: SystemTime) {
    let file = fs::File::options().write(true).open(path).expect("a file");
    file.set_modified(modified).expect("its time");
}

/// Two files side by side, as an operator has them.
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Pair {
    pub fn write(folder: &Path, leaf: &Leaf) -> Pair {
        fs::create_dir_all(folder).expect("a folder");
        let pair = Pair::at(folder);
        pair.overwrite(leaf);
        pair
    }

    /// As certbot calls them, whether they are there or not.
    pub fn at(folder: &Path) -> Pair {
        Pair {
            certificate: folder.join("fullchain.pem"),
            key: folder.join("privkey.pem"),
        }
    }

    pub fn files(&self) -> [&Path; 2] {
        [&self.certificate, &self.key]
    }

    pub fn overwrite(&self, leaf: &Leaf) {
        fs::write(&self.certificate, leaf.chain_pem()).expect("written");
        fs::write(&self.key, &leaf.key_pem).expect("written");
    }

    pub fn remove(&self) {
        for file in self.files() {
            fs::remove_file(file).expect("removed");
        }
    }

    /// The `[[certificates.files]]` entry for it.
    pub fn table(&self) -> String {
        format!(
            "[[certificates.files]]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n",
            self.certificate.display(),
            self.key.display()
        )
    }
}

/// certbot's `archive/NAME/cert1.pem` and `live/NAME/cert.pem -> ../../archive/NAME/cert1.pem`.
pub struct Certbot {
    root: PathBuf,
    name: String,
    version: u32,
}

impl Certbot {
    pub fn new(root: &Path, name: &str, leaf: &Leaf) -> Certbot {
        fs::create_dir_all(root.join("archive").join(name)).expect("a folder");
        fs::create_dir_all(root.join("live").join(name)).expect("a folder");
        let mut certbot = Certbot {
            root: root.into(),
            name: name.into(),
            version: 0,
        };
        certbot.renew(leaf);
        certbot
    }

    /// The pair that a configuration names.
    pub fn live(&self) -> Pair {
        let folder = self.root.join("live").join(&self.name);
        Pair {
            certificate: folder.join("fullchain.pem"),
            key: folder.join("privkey.pem"),
        }
    }

    /// Writes the next version into the archive, then relinks in certbot's own order: each link is
    /// removed and made anew, so that for a moment it is not there, and for longer the links lead
    /// to different versions.
    pub fn renew(&mut self, leaf: &Leaf) {
        self.version += 1;
        let files = [
            ("cert", leaf.certificate_pem.clone()),
            ("privkey", leaf.key_pem.clone()),
            ("chain", leaf.intermediate_pem.clone()),
            ("fullchain", leaf.chain_pem()),
        ];
        let archive = self.root.join("archive").join(&self.name);
        for (kind, text) in &files {
            let file = archive.join(format!("{kind}{}.pem", self.version));
            fs::write(&file, text).expect("written");
        }
        for (kind, _) in &files {
            self.relink(kind);
        }
    }

    fn relink(&self, kind: &str) {
        let link = self
            .root
            .join("live")
            .join(&self.name)
            .join(format!("{kind}.pem"));
        let target = format!("../../archive/{}/{kind}{}.pem", self.name, self.version);
        let _ = fs::remove_file(&link);
        std::thread::sleep(Duration::from_millis(20)); // certbot is not fast
        symlink(target, link).expect("a link");
    }
}

/// A Kubernetes secret volume: `tls.crt -> ..data/tls.crt`, `..data -> ..TIME`, swapped by one
/// rename.
pub struct SecretVolume {
    pub root: PathBuf,
    version: u32,
}

impl SecretVolume {
    pub fn new(root: &Path, leaf: &Leaf) -> SecretVolume {
        fs::create_dir_all(root).expect("a folder");
        let mut volume = SecretVolume {
            root: root.into(),
            version: 0,
        };
        volume.update(leaf);
        for name in ["ca.crt", "tls.crt", "tls.key"] {
            symlink(format!("..data/{name}"), root.join(name)).expect("a link");
        }
        volume
    }

    /// One that is there already.
    pub fn at(root: &Path) -> SecretVolume {
        let current = fs::read_link(root.join("..data")).expect("a volume");
        let version = current.extension().and_then(|text| text.to_str());
        SecretVolume {
            root: root.into(),
            version: version.and_then(|text| text.parse().ok()).expect("ours"),
        }
    }

    pub fn pair(&self) -> Pair {
        Pair {
            certificate: self.root.join("tls.crt"),
            key: self.root.join("tls.key"),
        }
    }

    pub fn update(&mut self, leaf: &Leaf) {
        let old = format!("..2026_11_23_06_00_00.{}", self.version);
        self.version += 1;
        let new = format!("..2026_11_23_06_00_00.{}", self.version);
        let folder = self.root.join(&new);
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("ca.crt"), &leaf.intermediate_pem).expect("written");
        fs::write(folder.join("tls.crt"), leaf.chain_pem()).expect("written");
        fs::write(folder.join("tls.key"), &leaf.key_pem).expect("written");
        let temporary = self.root.join("..data_tmp");
        symlink(&new, &temporary).expect("a link");
        fs::rename(&temporary, self.root.join("..data")).expect("renamed");
        let _ = fs::remove_dir_all(self.root.join(old));
    }
}

/// Writes a file a few bytes at a time, over the old contents.
pub async fn dribble(contents: &str, to: &Path, pause: Duration) {
    let mut file = fs::File::create(to).expect("a file");
    for piece in contents.as_bytes().chunks(256) {
        file.write_all(piece).expect("written");
        file.flush().expect("flushed");
        tokio::time::sleep(pause).await;
    }
}

pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
}
