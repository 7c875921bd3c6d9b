//! What the repository ships: the default configuration, the examples, the broken ones.

use super::*;

#[test]
fn the_default_and_every_example_are_accepted() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let examples = files_in("examples", "toml");
    assert!(examples.len() >= 6, "{examples:?}");
    let default = manifest.join("config/perennial.toml");
    for file in examples.iter().chain([&default]) {
        let config = Config::load(file).unwrap_or_else(|error| panic!("{error}"));
        let missing = check_files(&config);
        assert!(missing.is_empty(), "{missing}");
    }
}

#[test]
fn the_default_says_the_truth_about_its_keys() {
    let text = include_str!("../../../config/perennial.toml");
    let shipped = Config::parse(text, Path::new("config/perennial.toml"), &environment()).unwrap();
    // Every commented key, put into force, must leave the configuration as it is: the comments show
    // the defaults, and the lines that are only examples are marked so.
    let uncommented: String = text
        .lines()
        .filter(|line| !line.contains("e.g."))
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let all = Config::parse(
        &uncommented,
        Path::new("config/perennial.toml"),
        &environment(),
    )
    .unwrap_or_else(|found| panic!("{uncommented}\n{found}"));
    assert_eq!(format!("{:?}", all.server), format!("{:?}", shipped.server));
    assert_eq!(format!("{:?}", all.acme), format!("{:?}", shipped.acme));
    assert_eq!(format!("{:?}", all.tls), format!("{:?}", shipped.tls));
    assert_eq!(format!("{:?}", all.sites), format!("{:?}", shipped.sites));
    let certificates = format!("{:?}", shipped.certificates);
    assert_eq!(format!("{:?}", all.certificates), certificates);
}

/// Each begins with `# expect: LINE:COLUMN: part of the message`; that is all that is found.
#[test]
fn every_broken_file_is_refused_as_it_expects() {
    let files = files_in("tests/configs/broken", "toml");
    assert!(files.len() >= 25, "{} files", files.len());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let found = Config::parse(&text, &file, &environment()).unwrap_err();
        assert_only_expected(&file, &found);
    }
}

/// These are good to run with, but `perennial check` wants the files that they name.
#[test]
fn every_missing_file_is_found_as_it_expects() {
    let files = files_in("tests/configs/missing", "toml");
    assert!(files.len() >= 4, "{} files", files.len());
    for file in files {
        assert_only_expected(&file, &check_files(&Config::load(&file).unwrap()));
    }
}

#[track_caller]
fn assert_only_expected(file: &Path, found: &Diagnostics) {
    let text = std::fs::read_to_string(file).unwrap();
    let expected = text.lines().next().unwrap().strip_prefix("# expect: ");
    let expected = format!("{}:{}", file.display(), expected.unwrap());
    assert!(
        found.len() == 1 && found[0].to_string().starts_with(&expected),
        "expected {expected}\nfound    {found}"
    );
}
