//! The command line.

use std::path::PathBuf;
use std::time::Duration;

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    Threads,
    Sites,
    Certificates,
    Upstreams,
    Connections,
}

impl Dimension {
    pub const ALL: [Dimension; 5] = [
        Dimension::Threads,
        Dimension::Sites,
        Dimension::Certificates,
        Dimension::Upstreams,
        Dimension::Connections,
    ];

    /// The word for `--only`.
    pub fn word(self) -> &'static str {
        match self {
            Dimension::Threads => "threads",
            Dimension::Sites => "sites",
            Dimension::Certificates => "certificates",
            Dimension::Upstreams => "upstreams",
            Dimension::Connections => "connections",
        }
    }

    /// How many there are in each row. Three do not tell a line from a curve where the first two
    /// are hidden in what there is anyway.
    pub fn sizes(self) -> &'static [usize] {
        match self {
            Dimension::Threads => &[1, 2, 4],
            Dimension::Sites => &[1, 1_000, 10_000, 100_000],
            Dimension::Certificates => &[1, 1_000, 3_000, 10_000],
            Dimension::Upstreams => &[1, 10, 100, 1_000],
            Dimension::Connections => &[1, 100, 1_000, 10_000],
        }
    }
}

pub struct Options {
    pub dimensions: Vec<Dimension>,
    pub perennial: PathBuf,
    pub rounds: usize,
    /// What is measured, and what comes before it unmeasured.
    pub window: Duration,
    pub warm_up: Duration,
    pub client_cores: Option<usize>,
}

impl Options {
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            dimensions: Dimension::ALL.to_vec(),
            perennial: PathBuf::from("target/release/perennial"),
            rounds: 5,
            window: Duration::from_millis(2500),
            warm_up: Duration::from_millis(1000),
            client_cores: None,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let value = arguments.next();
                value.ok_or(format!("{argument} wants a value"))
            };
            match argument.as_str() {
                "--quick" => {
                    options.rounds = 1;
                    options.window = Duration::from_millis(1500);
                    options.warm_up = Duration::from_millis(700);
                }
                "--only" => options.dimensions = dimensions(&value()?)?,
                "--perennial" => options.perennial = value()?.into(),
                "--rounds" => options.rounds = number(&value()?)?,
                "--seconds" => options.window = Duration::from_secs(number(&value()?)? as u64),
                "--client-cores" => options.client_cores = Some(number(&value()?)?),
                _ => return Err(format!("{argument} is no option")),
            }
        }
        if !options.perennial.is_file() {
            let path = options.perennial.display();
            return Err(format!("{path} is not there: cargo build --release"));
        }
        Ok(options)
    }
}

/// Words with commas between them, in the order of the tables.
fn dimensions(words: &str) -> Result<Vec<Dimension>, String> {
    let is_known = |word: &str| Dimension::ALL.iter().any(|known| known.word() == word);
    if let Some(unknown) = words.split(',').find(|word| !is_known(word)) {
        let known = Dimension::ALL.map(Dimension::word).join(", ");
        return Err(format!("nothing grows that is called {unknown:?}: {known}"));
    }
    let is_wanted = |known: &Dimension| words.split(',').any(|word| word == known.word());
    Ok(Dimension::ALL.into_iter().filter(is_wanted).collect())
}

fn number(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{text:?} is no number above 0")),
    }
}
