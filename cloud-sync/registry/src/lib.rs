//! The cloud half of Edgewise: registry, deployments, telemetry sink, HTTP API and the operator's command line.
//!
//! The map, from the outside in:
//! - [`cli`] the command line; [`client`] its way to a registry; [`api`] the bodies that travel between them.
//! - [`serve`] builds and ends everything of a server; [`http`] and [`worker`] are its two doors: HTTP for people and
//!   programs, MQTT for devices.
//! - [`registry`] model versions, [`proof`] what they must pass; [`deployments`] and [`commands`] what devices shall do;
//!   [`sink`] where captured rows go and [`export`] how they come out.
//! - [`authority`] the certificates of devices and broker.
//! - [`manifest`] deployment manifests for Azure IoT Edge.
//! - [`store`] records in SQL, [`objects`] bytes by name, [`broker`] the embedded broker, [`link`] messages to devices:
//!   each is the only place that names its library.

pub mod api;
pub mod authority;
pub mod broker;
pub mod cli;
pub mod client;
pub mod commands;
pub mod deployments;
mod durable;
pub mod error;
pub mod export;
pub mod http;
pub mod link;
pub mod manifest;
pub mod objects;
pub mod proof;
pub mod registry;
pub mod serve;
pub mod sharing;
pub mod sink;
pub mod store;
pub mod worker;

/// Milliseconds since 1970, by this machine's clock; 0 before.
fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}
