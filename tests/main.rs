//! End-to-end scenarios: each starts the built program and talks to it as its users do, with real
//! files, real clients and real certificate authorities. One file is one scenario.
//!
//! Nothing here links the library: what is tested is what is shipped.

// A test that finds nothing to unwrap has failed, and says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod access_log;
mod access_log_files;
mod acme_accounts;
mod acme_authorities;
mod acme_bad_input;
mod acme_challenges;
mod acme_crash;
mod acme_crash_loop;
mod acme_dns;
mod acme_faults;
mod acme_many;
mod acme_other_cas;
mod acme_pebble;
mod acme_queue;
mod acme_revocation;
mod acme_scripted;
mod admin;
mod broken_files;
mod ca_down;
mod check;
mod cli;
mod client_auth;
mod compression;
mod config_reload;
mod connection_limits;
mod crash_write;
mod drain;
mod embedded;
mod engine;
mod examples;
mod explain;
mod formats;
mod forward_auth;
mod grpc;
mod health_checks;
mod load_balancing;
mod manual_delete;
mod manual_import;
mod manual_revoke;
mod on_demand;
mod on_demand_budgets;
mod on_demand_memory;
mod on_demand_pebble;
mod on_demand_renewal;
mod preflight;
mod proof;
mod proxy;
mod proxy_answers;
mod proxy_protocol;
mod real_peers;
mod reload;
mod reload_layouts;
mod renewal_pebble;
mod renewers;
mod renewers_acme;
mod renewers_copies;
mod renewers_layouts;
mod selection;
mod session_resumption;
mod site_listen;
mod site_routes;
mod slow_clients;
mod start;
mod static_files;
mod static_parts;
mod streaming;
mod support;
mod systemd;
mod takeover;
mod trust;
mod unix_sockets;
mod unreadable_files;
mod upgrade;
mod upstream_h2;
mod upstream_limits;
mod upstream_names;
mod upstream_tls;
mod warnings;
mod websocket_http2;
