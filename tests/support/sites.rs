//! Sites whose certificate comes from a file, for scenarios that are about something else.

use std::path::PathBuf;

use super::certs::{Leaf, TestCa};
use super::place::Place;
use super::writers::Pair;

/// An authority, a pair of it on disk, and its root for clients.
pub struct FileTls {
    pub ca: TestCa,
    pub leaf: Leaf,
    pub pair: Pair,
    pub root: PathBuf,
}

impl FileTls {
    pub fn new(place: &Place, names: &[&str]) -> FileTls {
        let ca = TestCa::new();
        let leaf = ca.leaf(names);
        let pair = Pair::write(&place.path("tls"), &leaf);
        let root = place.write("tls-root.pem", &ca.root_pem);
        FileTls {
            ca,
            leaf,
            pair,
            root,
        }
    }
}

/// A `[[sites]]` table.
pub fn site(host: &str, tls: &str, upstreams: &[&str]) -> String {
    format!("[[sites]]\nhosts = [\"{host}\"]\ntls = \"{tls}\"\nupstreams = {upstreams:?}\n")
}
