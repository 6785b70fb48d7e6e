//! The loaded models of one version: who scores on which of them now.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use cloud_sync::name::ModelName;
use engine::{Model, Tensors};

use super::{Counters, ScoreRefused, Scored};

/// Loaded models of which each scores one request at a time.
pub(super) struct Instances {
    models: Vec<Mutex<Box<dyn Model>>>,
    counters: Arc<Counters>,
}

/// One of them, taken until this is dropped.
pub(super) struct Instance<'a> {
    model: MutexGuard<'a, Box<dyn Model>>,
    counters: &'a Counters,
}

impl Instances {
    pub(super) fn new(models: Vec<Box<dyn Model>>, counters: Arc<Counters>) -> Self {
        Self { models: models.into_iter().map(Mutex::new).collect(), counters }
    }

    pub(super) fn len(&self) -> usize {
        self.models.len()
    }

    /// The one at a place, once it is free; `None` where there is no such place.
    pub(super) fn take(&self, place: usize) -> Option<Instance<'_>> {
        let model = self.models.get(place)?;
        Some(self.instance(model.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Any that is free within `patience`, which is far too short to sleep meanwhile.
    pub(super) fn take_within(&self, patience: Duration) -> Option<Instance<'_>> {
        let mut begun = None;
        loop {
            let free = self.models.iter().find_map(|model| match model.try_lock() {
                Ok(model) => Some(self.instance(model)),
                Err(TryLockError::Poisoned(model)) => Some(self.instance(model.into_inner())),
                Err(TryLockError::WouldBlock) => None,
            });
            if free.is_some() || begun.get_or_insert_with(Instant::now).elapsed() > patience {
                return free;
            }
            std::hint::spin_loop();
        }
    }

    fn instance<'a>(&'a self, model: MutexGuard<'a, Box<dyn Model>>) -> Instance<'a> {
        Instance { model, counters: &self.counters }
    }
}

impl Instance<'_> {
    /// Scores a request that waited so long. A panic costs that request and no other.
    pub(super) fn score(
        &mut self,
        name: &ModelName,
        inputs: &Arc<Tensors>,
        queued: Duration,
    ) -> Result<Scored, ScoreRefused> {
        let begun = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.model.score(inputs)));
        let computed = begun.elapsed();
        match result {
            Ok(Ok(outputs)) => {
                self.counters.run();
                Ok(Scored { inputs: inputs.clone(), outputs: Arc::new(outputs), queued, computed })
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(ScoreRefused::Crashed(name.clone())),
        }
    }
}
