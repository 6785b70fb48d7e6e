//! The product from outside: real programs, a real broker, real data, real faults. One property in each file.
//!
//! Needs mosquitto, `cargo build --workspace --bins`, `cross/onnxruntime` and `tests/fetch-models`; `tests/run` sees
//! to all of it. What a test leaves behind, logs above all, lies in `target/e2e/NAME`.

// A test says what went wrong by panicking, and only JSON values are indexed; the exemptions in .clippy.toml do not reach
// a test's helpers here.
#![allow(clippy::indexing_slicing, clippy::panic)]

mod access;
mod clients;
mod commands;
mod corrupt;
mod doctor;
mod edge_peer;
mod edge_rules;
mod engines;
mod fleet;
mod gate;
mod http_api;
mod journey;
mod ledger;
mod local;
mod manifest;
mod module;
mod registry_rules;
mod replicas;
mod resume;
mod shutdown;
mod supervised;
