//! Perennial is an HTTPS reverse proxy whose certificates never go stale.
//!
//! To a program that runs a Pingora server of its own this library gives the same certificates:
//! [`Certificates`] reloads them from files, [`Acme`] orders and renews them. [`embed`] shows how.
//! That is all of the library that is meant for others; the rest is public for the program and
//! may change with every version.
//!
//! The modules stand in the order of the data: text becomes a [`config::Config`], the [`acme`]
//! worker and the [`local_ca`] write certificates into the [`store`], the [`certificate`] reloader
//! reads whatever changed on disk and publishes it, the [`listener`] serves it to handshakes, the
//! [`proxy`] passes requests on, which it reads as [`message`] does, and [`admin`] shows all of it.

#[doc(hidden)]
pub mod clock;
#[doc(hidden)]
pub mod config;
mod http_client;
mod spare;
mod token_bucket;

#[doc(hidden)]
pub mod acme;
#[doc(hidden)]
pub mod import;
#[doc(hidden)]
pub mod local_ca;
#[doc(hidden)]
pub mod store;

#[doc(hidden)]
pub mod certificate;
#[doc(hidden)]
pub mod on_demand;

#[doc(hidden)]
pub mod listener;
#[doc(hidden)]
pub mod message;
#[doc(hidden)]
pub mod proxy;

#[doc(hidden)]
pub mod admin;
#[doc(hidden)]
pub mod app;
#[doc(hidden)]
pub mod cli;

pub mod embed;

pub use embed::{Acme, CertificateService, Certificates, EmbedError, HttpChallenges, Source};
