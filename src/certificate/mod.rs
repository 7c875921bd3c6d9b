//! From files on disk to the live table that handshakes read: scan, read, verify, publish. Only
//! the reloader publishes; this module never talks to a CA and never writes a certificate.

pub mod credential;
pub mod name;
