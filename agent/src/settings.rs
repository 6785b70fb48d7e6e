//! How one model is run here: what the cloud says, else what this device's configuration says.

use cloud_sync::contract::{Collect, ModelSettings};
use engine::{Provider, UnknownProvider};

/// Settings of a model with nothing left open.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What shall run it.
    pub provider: Provider,
    /// Threads within one score; 0 lets the engine choose.
    pub threads: u32,
    /// Workers, each with the model loaded; at least 1.
    pub instances: u32,
    /// Requests that may wait before new ones are refused.
    pub queue: u32,
    /// What is captured, where this model has a word of its own.
    pub collect: Option<Collect>,
}

/// Most threads within one score: no board has more cores.
pub(crate) const MAX_THREADS: u32 = 256;

/// Most workers of one model: each holds the model in memory.
pub(crate) const MAX_INSTANCES: u32 = 64;

/// Longest queue of one model: each request holds its tensors in memory.
pub(crate) const MAX_QUEUE: u32 = 4096;

impl Settings {
    /// `wanted` over these.
    ///
    /// # Errors
    /// The provider that is wanted is none.
    pub fn with(&self, wanted: &ModelSettings) -> Result<Self, UnknownProvider> {
        Ok(Self {
            provider: wanted.provider.as_deref().map_or(Ok(self.provider), str::parse)?,
            threads: wanted.threads.unwrap_or(self.threads),
            instances: wanted.instances.unwrap_or(self.instances).clamp(1, MAX_INSTANCES),
            queue: wanted.queue.unwrap_or(self.queue).clamp(1, MAX_QUEUE),
            collect: wanted.collect,
        })
    }
}
