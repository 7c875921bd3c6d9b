//! Perennial is an HTTPS reverse proxy whose certificates never go stale.
//!
//! The modules stand in the order of the data: text becomes a [`config::Config`], the [`acme`]
//! worker and the [`local_ca`] write certificates into the [`store`], the [`certificate`] reloader
//! reads whatever changed on disk and publishes it, the [`listener`] serves it to handshakes, the
//! [`proxy`] passes requests on, and [`admin`] shows all of it.

pub mod clock;
pub mod config;

pub mod acme;
pub mod local_ca;
pub mod store;

pub mod certificate;
pub mod listener;
pub mod proxy;

pub mod admin;
pub mod app;
pub mod cli;
