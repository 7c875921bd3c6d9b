//! From files on disk to the live table that handshakes read: scan, read, verify, publish. Only
//! the reloader publishes; this module never talks to a CA and never writes a certificate.

pub mod certified_key;
pub mod credential;
pub mod folder;
pub mod generations;
pub mod inventory;
pub mod material;
pub mod name;
pub mod observe;
pub mod reloader;
pub mod table;
pub mod unit;
pub mod watcher;
