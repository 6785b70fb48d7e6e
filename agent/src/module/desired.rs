//! What the twin's desired properties wish: as types, with all that is wrong with them by its path.
//!
//! Invariants:
//! - What is wrong leaves as it was what it would have changed, and nothing else: a model's entry that model, a route
//!   all routes, a section that section. What is unknown changes nothing.
//! - Nothing in a document is a panic, and every value is held to the same limits as in the configuration.

mod fields;
mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cloud_sync::contract::{Collect, ModelSettings};
use cloud_sync::digest::Digest;
use cloud_sync::name::{DeviceId, ModelName};
use cloud_sync::session::{BrokerUrl, Credentials, TlsFiles};
use cloud_sync::topic::Root;

pub use read::read;

use crate::fetch::Source;

/// What the twin wishes; `None` is what it says nothing of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wishes {
    /// The models to run, and no others; `None` leaves that to the registry.
    pub models: Option<BTreeMap<ModelName, WantedModel>>,
    /// Models that are named, with a mistake, and of which no earlier wish is known: they stay as they are.
    pub unclear: BTreeSet<ModelName>,
    /// From which inputs through which models to which outputs; `None` for Azure ML's own names.
    pub routes: Option<Vec<Route>>,
    /// What is captured; `None` for what the configuration says.
    pub collect: Option<Collect>,
    /// The link to a registry; `None` for what the configuration says.
    pub registry: Option<Registry>,
    /// What is logged; `None` for what the configuration says.
    pub log_level: Option<String>,
}

/// A version of a model to run.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedModel {
    /// The version, from 1.
    pub version: u64,
    /// The digest of the bundle's manifest.
    pub digest: Digest,
    /// Where the bundle is.
    pub source: Source,
    /// Bytes of all files of the bundle, where that is known.
    pub size: Option<u64>,
    /// Grows where a version that was rejected or rolled back shall be tried again.
    pub attempt: u64,
    /// How to run it.
    pub settings: ModelSettings,
}

/// From an input through a model to an output. The names are edgeHub's: `[A-Za-z0-9._-]`, 1 to 128 of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The input.
    pub input: String,
    /// What scores it.
    pub model: ModelName,
    /// The output.
    pub output: String,
}

/// The link to a registry. What is `None` is as in the configuration, but for credentials and certificates: those of
/// the configuration are another broker's.
#[derive(Debug, Clone, PartialEq)]
pub struct Registry {
    /// Its broker.
    pub broker: BrokerUrl,
    /// The root of the site's topics.
    pub root: Option<Root>,
    /// The name under which the registry knows this device.
    pub device: Option<DeviceId>,
    /// User name and password, where the broker wants them.
    pub credentials: Option<Credentials>,
    /// Certificates.
    pub tls: TlsFiles,
    /// How often the link is proven alive.
    pub keep_alive: Option<Duration>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where, as `models.load.version` or `routes[0].input`.
    pub path: String,
    /// What is wrong there, and what was expected.
    pub error: String,
}

#[cfg(test)]
mod tests;
