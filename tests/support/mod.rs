//! What the scenarios stand on: the program under test, authorities, certificates, clients,
//! upstreams and the people who write certificate files. Nothing in here asserts a scenario.

// A scenario may be taken out while a part of the product is being rebuilt; the kit stays whole.
#![allow(dead_code)]

pub mod acme_clients;
pub mod admin_api;
pub mod bind;
pub mod certs;
pub mod client;
pub mod clock;
pub mod command;
pub mod grpc;
pub mod h2_frames;
pub mod handshakes;
pub mod http1;
pub mod http2;
pub mod ledger;
pub mod nginx;
pub mod node;
pub mod notify;
pub mod other_cas;
pub mod pebble;
pub mod perennial;
pub mod permission;
pub mod place;
pub mod raw;
pub mod recorder;
pub mod scripted;
pub mod scripted_ca;
pub mod seed;
pub mod server;
pub mod session;
pub mod sites;
pub mod tls;
pub mod upstream;
pub mod wait;
pub mod websocket;
pub mod wire;
pub mod writers;
