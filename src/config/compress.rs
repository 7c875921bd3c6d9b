//! `compress`: in which codings bodies are sent that are not in any.

use super::diagnostic::Problem;
use super::reader::{Kind, Table};
use super::toml_file::Reader;
use super::value::choice;

/// A content coding (RFC 9110 section 8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    Gzip,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// What `compress = true` means, the best first: zstd is the fastest, brotli the smallest, and
    /// gzip everybody knows.
    const ALL: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];

    /// As it is called in `Accept-Encoding` and `Content-Encoding`.
    pub fn as_str(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Brotli => "br",
            Coding::Zstd => "zstd",
        }
    }

    /// What the names of such files end in.
    pub fn extension(self) -> &'static str {
        match self {
            Coding::Gzip => "gz",
            Coding::Brotli => "br",
            Coding::Zstd => "zst",
        }
    }
}

const COMPRESS: Kind = Kind {
    what: "true, false or an array of codings",
    example: "[\"zstd\", \"br\", \"gzip\"]",
};

impl<'a> Reader<'a> {
    /// The codings, the best first; none: nothing is compressed. `None`: it is not said.
    pub(super) fn compress(&self, table: &Table<'a>) -> Option<Vec<Coding>> {
        let value = table.get("compress")?;
        if let Some(on) = value.as_boolean() {
            return Some(match on {
                true => Coding::ALL.to_vec(),
                false => Vec::new(),
            });
        }
        let list = value.list(COMPRESS, coding)?;
        if list.is_empty {
            let problem = Problem::new("`compress` is empty")
                .help("write compress = false to compress nothing");
            self.report.add(list.at, problem);
        }
        let mut codings: Vec<Coding> = Vec::new();
        for one in list.values {
            match codings.contains(&one.value) {
                true => {
                    let problem = Problem::new("this coding is already listed")
                        .help("the order is the order of preference; remove one");
                    self.report.add(one.at, problem);
                }
                false => codings.push(one.value),
            }
        }
        Some(codings)
    }
}

fn coding(text: &str) -> Result<Coding, Problem> {
    choice(
        "coding",
        text,
        &Coding::ALL.map(|coding| (coding.as_str(), coding)),
    )
}
