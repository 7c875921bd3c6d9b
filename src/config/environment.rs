//! What a configuration takes from the machine it is read on: environment variables, secret files
//! and the default state directory. It is handed to the parser, which touches nothing itself.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

/// The state directory of an installed server.
const SYSTEM_STATE_DIR: &str = "/var/lib/perennial";

/// Everything outside its text that a configuration may depend on.
#[derive(Clone)]
pub struct Environment<'a> {
    /// The value of an environment variable, for `"${NAME}"`.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// Reads a secret, for `hmac_key_file`.
    pub read_text: &'a dyn Fn(&Path) -> io::Result<String>,
    pub default_state_dir: DefaultStateDir,
}

/// Where state is kept if nothing else is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultStateDir {
    pub path: PathBuf,
    /// What to tell the user where the place is not the documented one.
    pub note: Option<String>,
}

impl Environment<'static> {
    /// This process's own, for the configuration in `file`, or for none.
    pub fn of_process(file: Option<&Path>) -> Environment<'static> {
        Environment {
            variable: &variable,
            read_text: &read_text,
            default_state_dir: file
                .and_then(checkout_state_dir)
                .unwrap_or_else(DefaultStateDir::of_user),
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn read_text(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path)
}

/// `DIR/state` where it exists and the configuration is `DIR/config/perennial.toml`.
fn checkout_state_dir(file: &Path) -> Option<DefaultStateDir> {
    let file = std::path::absolute(file).ok()?;
    if !file.ends_with("config/perennial.toml") {
        return None;
    }
    let path = file.parent()?.parent()?.join("state");
    path.is_dir()
        .then_some(DefaultStateDir { path, note: None })
}

impl DefaultStateDir {
    fn of_user() -> DefaultStateDir {
        let user = rustix::process::geteuid();
        if user.is_root() || is_writable(Path::new(SYSTEM_STATE_DIR)) {
            return DefaultStateDir::system();
        }
        let absolute = |name| {
            variable(name)
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
        };
        DefaultStateDir::of_other_user(user.as_raw(), absolute("XDG_STATE_HOME"), absolute("HOME"))
    }

    fn system() -> DefaultStateDir {
        DefaultStateDir {
            path: SYSTEM_STATE_DIR.into(),
            note: None,
        }
    }

    /// For a user who cannot write where a system service would. Without a home there is nowhere
    /// better, and opening the directory will say what is wrong with it.
    fn of_other_user(
        user: u32,
        xdg_state_home: Option<PathBuf>,
        home: Option<PathBuf>,
    ) -> DefaultStateDir {
        let Some(base) = xdg_state_home.or_else(|| home.map(|home| home.join(".local/state")))
        else {
            return DefaultStateDir::system();
        };
        let path = base.join("perennial");
        let note = format!(
            "user {user} cannot write {SYSTEM_STATE_DIR}: certificates and accounts are kept in {} \
             (state_dir in [server] or --state-dir changes that)",
            path.display()
        );
        DefaultStateDir {
            path,
            note: Some(note),
        }
    }
}

/// Whether `path` can be written, or made if it does not exist.
fn is_writable(path: &Path) -> bool {
    let existing = match path.exists() {
        true => Some(path),
        false => path.parent(),
    };
    existing.is_some_and(|path| rustix::fs::access(path, Access::WRITE_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_user_keeps_state_at_home_and_is_told() {
        let home = || Some(PathBuf::from("/home/u"));
        let at = |xdg: Option<&str>, home| {
            DefaultStateDir::of_other_user(1000, xdg.map(PathBuf::from), home)
        };
        let xdg = at(Some("/srv/state"), home());
        assert_eq!(xdg.path, Path::new("/srv/state/perennial"));
        let plain = at(None, home());
        assert_eq!(plain.path, Path::new("/home/u/.local/state/perennial"));
        assert!(plain.note.unwrap().starts_with("user 1000 cannot write"));
        assert_eq!(at(None, None), DefaultStateDir::system());
    }

    #[test]
    fn a_checkout_keeps_its_own_state() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config/perennial.toml");
        assert_eq!(checkout_state_dir(&file), None);
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        assert_eq!(checkout_state_dir(&file).unwrap().path, state);
        let other = dir.path().join("config/other.toml");
        assert_eq!(checkout_state_dir(&other), None);
    }
}
