//! How one model is run here: what the cloud says, else what this device's configuration says.

use std::time::Duration;

use cloud_sync::contract::{Collect, ModelSettings};
use engine::{Provider, Tuning, UnknownOptimization, UnknownProvider};

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
    /// Which requests are scored as one.
    pub batching: Batching,
    /// How ONNX Runtime prepares and runs it.
    pub tuning: Tuning,
    /// What is captured, where this model has a word of its own.
    pub collect: Option<Collect>,
}

/// How requests of a model are joined; by default they are not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batching {
    /// Most rows that are scored as one; 0 and 1 for each request alone.
    pub max_rows: u32,
    /// Longest time that a request waits for others.
    pub max_delay: Duration,
    /// Rows at which no others are waited for.
    pub preferred: Vec<u32>,
}

/// A setting that nothing here goes by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownSetting {
    /// The provider is none.
    #[error(transparent)]
    Provider(#[from] UnknownProvider),
    /// The optimization is none.
    #[error(transparent)]
    Optimization(#[from] UnknownOptimization),
}

/// Most threads within one score: no board has more cores.
pub(crate) const MAX_THREADS: u32 = 256;

/// Most workers of one model: each holds the model in memory.
pub(crate) const MAX_INSTANCES: u32 = 64;

/// Longest queue of one model: each request holds its tensors in memory.
pub(crate) const MAX_QUEUE: u32 = 4096;

/// Most rows that are scored as one: as many requests as may wait.
pub(crate) const MAX_BATCH: u32 = MAX_QUEUE;

/// Longest time that a request may be told to wait for others: who waits longer for an answer has no use for batches.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(1);

impl Batching {
    /// Whether any requests are joined.
    pub fn is_on(&self) -> bool {
        self.max_rows > 1
    }

    fn with(&self, wanted: &ModelSettings) -> Self {
        let max_delay = wanted.max_delay_us.map_or(self.max_delay, Duration::from_micros);
        let preferred = wanted.preferred_batch.as_ref().unwrap_or(&self.preferred);
        Self {
            max_rows: wanted.max_batch.unwrap_or(self.max_rows).min(MAX_BATCH),
            max_delay: max_delay.min(MAX_DELAY),
            preferred: preferred.clone(),
        }
    }
}

impl Settings {
    /// `wanted` over these.
    ///
    /// # Errors
    /// The provider or the optimization that is wanted is none.
    pub fn with(&self, wanted: &ModelSettings) -> Result<Self, UnknownSetting> {
        let Tuning { optimization, arena } = self.tuning;
        Ok(Self {
            provider: wanted.provider.as_deref().map_or(Ok(self.provider), str::parse)?,
            threads: wanted.threads.unwrap_or(self.threads),
            instances: wanted.instances.unwrap_or(self.instances).clamp(1, MAX_INSTANCES),
            queue: wanted.queue.unwrap_or(self.queue).clamp(1, MAX_QUEUE),
            batching: self.batching.with(wanted),
            tuning: Tuning {
                optimization: wanted.optimization.as_deref().map_or(Ok(optimization), str::parse)?,
                arena: wanted.arena.unwrap_or(arena),
            },
            collect: wanted.collect,
        })
    }
}
