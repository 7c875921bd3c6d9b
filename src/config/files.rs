//! `root` and what goes with it: a folder whose files are the answers of a site or a route.

use std::path::PathBuf;

use super::diagnostic::Problem;
use super::reader::{Kind, Table, Value};
use super::toml_file::Reader;
use super::value::file_path;

/// A folder and how it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub root: PathBuf,
    /// What is served for a directory: the first of these files that it has.
    pub index: Vec<Box<str>>,
    /// The file that is served where there is none, by its path below the root, without a slash
    /// in front.
    pub fallback: Option<Box<str>>,
    /// Whether symbolic links may lead out of the root.
    pub follow_symlinks: bool,
    /// Whether names that begin with a dot are served; `.well-known` always is.
    pub dot_files: bool,
    /// Whether what is in a directory without an index is listed.
    pub browse: bool,
    /// Whether `FILE.br`, `FILE.zst` and `FILE.gz` are served for `FILE` to whoever takes them.
    pub precompressed: bool,
}

impl Files {
    /// With every setting at its default.
    pub fn below(root: PathBuf) -> Files {
        Files {
            root,
            index: vec!["index.html".into()],
            fallback: None,
            follow_symlinks: false,
            dot_files: false,
            browse: false,
            precompressed: true,
        }
    }
}

const ROOT: Kind = Kind {
    what: "a path in quotes",
    example: "\"/srv/www\"",
};
const INDEX: Kind = Kind {
    what: "an array of file names",
    example: "[\"index.html\"]",
};
const FALLBACK: Kind = Kind {
    what: "the path of a file below the root in quotes",
    example: "\"/index.html\"",
};

/// The keys that say something about a `root`.
const BESIDE_ROOT: [&str; 6] = [
    "index",
    "fallback",
    "follow_symlinks",
    "dot_files",
    "browse",
    "precompressed",
];

impl<'a> Reader<'a> {
    /// The folder of a site or a route, and where it is named.
    pub(super) fn files(&self, table: &Table<'a>) -> Option<(Files, usize)> {
        let Some(value) = table.get("root") else {
            self.check_beside_root(table);
            return None;
        };
        let root = value.parse(ROOT, |text| file_path(text, self.base))?;
        let mut files = Files::below(root.value);
        if let Some(list) = table.get("index").and_then(|v| v.list(INDEX, file_name)) {
            files.index = list.values.into_iter().map(|name| name.value).collect();
        }
        let fallback = table.get("fallback");
        files.fallback = fallback
            .and_then(|v| v.parse(FALLBACK, fallback_path))
            .map(|path| path.value);
        let flag = |key, default| {
            let written = table.get(key).and_then(Value::boolean);
            written.unwrap_or(default)
        };
        files.follow_symlinks = flag("follow_symlinks", files.follow_symlinks);
        files.dot_files = flag("dot_files", files.dot_files);
        files.browse = flag("browse", files.browse);
        files.precompressed = flag("precompressed", files.precompressed);
        Some((files, root.at))
    }

    fn check_beside_root(&self, table: &Table<'a>) {
        for key in BESIDE_ROOT {
            if let Some(value) = table.get(key) {
                let problem =
                    Problem::new(format!("`{key}` is about files, and there is no `root`"))
                        .help("add root = \"/srv/www\" beside it, or remove it");
                self.report.add(value.at, problem);
            }
        }
    }
}

fn file_name(text: &str) -> Result<Box<str>, Problem> {
    let is_name = !text.is_empty() && text != "." && text != ".." && !text.contains(['/', '\0']);
    match is_name {
        true => Ok(text.into()),
        false => Err(Problem::new(format!("{text:?} is no name of a file"))
            .help("write names without folders, such as index = [\"index.html\"]")),
    }
}

/// `/index.html`, as a path below the root.
fn fallback_path(text: &str) -> Result<Box<str>, Problem> {
    let path = text.strip_prefix('/');
    let is_path = |path: &&str| path.split('/').all(|part| file_name(part).is_ok());
    match path.filter(is_path) {
        Some(path) => Ok(path.into()),
        None => Err(Problem::new(format!("{text:?} is no file below the root"))
            .help("it begins with a slash, which stands for the root, such as \"/index.html\"")),
    }
}
