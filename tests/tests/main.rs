//! The product from outside: real programs, a real broker, real data, real faults. One property in each file.
//!
//! Needs mosquitto, nats-server, `cargo build --workspace --bins`, `cross/onnxruntime` and `tests/fetch-models`; `tests/run` sees
//! to all of it. What a test leaves behind, logs above all, lies in `target/e2e/NAME`.

// A test says what went wrong by panicking, and only JSON values are indexed; the exemptions in .clippy.toml do not reach
// a test's helpers here.
#![allow(clippy::indexing_slicing, clippy::panic)]

mod access;
mod batches;
mod bounds;
mod clients;
mod clocks;
mod commands;
mod corrupt;
mod crowd;
mod doctor;
mod durable;
mod edge_peer;
mod edge_rules;
mod engines;
mod enrolment;
mod fleet;
mod gate;
mod hostile;
mod http_api;
mod journey;
mod kills;
mod ledger;
mod links;
mod local;
mod manifest;
mod module;
mod nats;
mod observed;
mod registry_rules;
mod replicas;
mod resume;
mod shutdown;
mod supervised;
