//! Where a certificate is kept: in `certificates/` where a site has its name, in `on-demand/` where
//! clients ask for it. An import and a changed configuration leave it where it does not belong: it
//! would be ordered anew although it is there, or be served until it has expired.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::sweep::{directories, move_directory};
use super::{StateDir, StoreError, generation, make_directory};
use crate::certificate::name::Name;

/// Moves each certificate to its place, and answers how many were moved. `of_sites`: the
/// directories in `certificates/` that are called after the names of sites. What is there already
/// stays. Blocks on the disk; wants the writer's lock to be held, and nobody to write there.
pub fn put_in_place(
    state: &StateDir,
    of_sites: &HashSet<PathBuf>,
    is_on_demand: impl Fn(&Name) -> bool,
) -> Result<usize, StoreError> {
    let mut moved = 0;
    for asked_for in directories(&state.on_demand_dir()) {
        let of_site = counterpart(&asked_for, &state.certificates_dir());
        if of_sites.contains(&of_site) {
            moved += move_all(&asked_for, &of_site)?;
        }
    }
    for own in directories(&state.certificates_dir()) {
        if !of_sites.contains(&own) && name_of(&own).is_some_and(|name| is_on_demand(&name)) {
            moved += move_all(&own, &counterpart(&own, &state.on_demand_dir()))?;
        }
    }
    Ok(moved)
}

fn counterpart(dir: &Path, root: &Path) -> PathBuf {
    root.join(dir.file_name().unwrap_or_default())
}

/// The name that a directory is called after: a long one is not spelt out there.
fn name_of(dir: &Path) -> Option<Name> {
    let mut stored = directories(dir).into_iter();
    let stored = stored.find_map(|kind| generation::read_current(&kind).ok().flatten())?;
    let mut names = stored.leaf.names.into_iter();
    names.find(|name| {
        dir.file_name()
            .is_some_and(|own| own == &*super::component(name))
    })
}

fn move_all(from: &Path, to: &Path) -> Result<usize, StoreError> {
    let mut moved = 0;
    for kind in directories(from) {
        let target = counterpart(&kind, to);
        if !target.exists() {
            make_directory(to)?;
            move_directory(&kind, &target)?;
            moved += 1;
        }
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::config::KeyType;
    use crate::store::sweep::tests::put_into;

    #[test]
    fn each_goes_where_the_configuration_looks_for_it_and_nothing_is_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let not_after = OffsetDateTime::now_utc() + Duration::days(60);
        let name = |text: &str| text.parse::<Name>().unwrap();
        let put = |dir: PathBuf, text: &str| put_into(dir, text, not_after);
        let own = |text: &str, kind| state.certificate_dir(&name(text), kind);
        let asked = |text: &str, kind| state.on_demand_certificate_dir(&name(text), kind);
        let long = format!("{0}.{0}.{0}.example.com", "a".repeat(60));
        for text in ["imported.test", "unused.test", "both.test", &long] {
            put(own(text, KeyType::P256), text);
        }
        put(own("imported.test", KeyType::Rsa2048), "imported.test");
        put(own("site.test", KeyType::P256), "site.test");
        let both = put(asked("both.test", KeyType::P256), "both.test");
        put(asked("once.test", KeyType::P384), "once.test");
        let there = fs::read_link(both.join(generation::CURRENT)).unwrap();
        let of_sites = ["site.test", "once.test"].map(|text| own(text, KeyType::P256));
        let of_sites = of_sites.iter().filter_map(|dir| dir.parent());
        let of_sites: HashSet<PathBuf> = of_sites.map(Path::to_owned).collect();
        let is_on_demand = |it: &Name| *it != name("unused.test");
        assert_eq!(put_in_place(&state, &of_sites, is_on_demand).unwrap(), 4);
        for dir in [
            own("site.test", KeyType::P256),
            own("unused.test", KeyType::P256),
            own("once.test", KeyType::P384),
            own("both.test", KeyType::P256),
            asked("imported.test", KeyType::P256),
            asked("imported.test", KeyType::Rsa2048),
            asked(&long, KeyType::P256),
        ] {
            assert!(generation::read_current(&dir).unwrap().is_some(), "{dir:?}");
        }
        assert!(!own("imported.test", KeyType::P256).exists());
        assert!(!asked("once.test", KeyType::P384).parent().unwrap().exists());
        assert_eq!(
            fs::read_link(both.join(generation::CURRENT)).unwrap(),
            there
        );
        assert_eq!(put_in_place(&state, &of_sites, is_on_demand).unwrap(), 0);
    }
}
