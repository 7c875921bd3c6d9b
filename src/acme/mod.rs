//! Certificates from ACME authorities (RFC 8555): when to order ([`renewal`]), what was tried
//! ([`ledger`]), how ([`order`]), and who does it ([`worker`]). It writes certificates into the
//! [`store`](crate::store) and never serves one: what handshakes see is the reloader's business.

pub mod account;
pub mod challenges;
pub mod dns;
pub mod error;
pub mod history;
pub mod http;
mod job;
mod jws;
pub mod ledger;
pub mod limits;
pub mod on_demand_names;
pub mod order;
mod patience;
pub mod preflight;
pub mod public_cas;
pub mod queue;
pub mod renewal;
pub mod renewal_info;
mod revocation;
pub mod subject;
pub mod surroundings;
pub mod worker;
