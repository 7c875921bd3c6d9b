//! From files on disk to the live table that handshakes read: scan, read, verify, publish. Only
//! the reloader publishes; this module never talks to a CA and never writes a certificate.

pub mod anchors;
pub mod attention;
pub mod certified_key;
pub mod credential;
pub mod explain;
mod file_path;
pub mod folder;
#[cfg(test)]
mod folder_tests;
pub mod generations;
pub mod inventory;
#[cfg(test)]
mod inventory_tests;
pub mod material;
pub mod name;
pub mod observe;
pub mod on_demand;
pub mod overdue;
mod parallel;
pub mod pem;
pub mod proof;
pub mod reloader;
mod rounds;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;
pub mod trust;
#[cfg(test)]
mod trust_tests;
pub mod unit;
mod units;
mod walk;
pub mod warnings;
pub mod watcher;
pub mod x509;
