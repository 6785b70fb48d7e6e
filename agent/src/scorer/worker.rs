//! The threads that score what waits for a version: each request alone, or several as one.
//!
//! Invariants:
//! - A request whose caller has gone away is not scored.
//! - Where a batch fails, each of its requests is scored alone, so that only the one at fault fails. A model that does not
//!   give a row for each row is asked for one request at a time from then on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use cloud_sync::name::ModelName;
use engine::{Tensors, batch};

use super::Scored;
use super::counters::Counters;
use super::instances::{Instance, Instances};
use super::queue::{Job, Queue};
use crate::settings::Batching;

/// What the workers of a version share.
pub(super) struct Workshop {
    pub(super) name: ModelName,
    pub(super) instances: Arc<Instances>,
    pub(super) queue: Queue,
    pub(super) counters: Arc<Counters>,
    pub(super) batching: Batching,
    /// It was seen that the model gives other rows than it is given.
    pub(super) does_not_batch: AtomicBool,
}

/// One worker, which scores on the instance at its place.
pub(super) struct Worker {
    pub(super) shop: Arc<Workshop>,
    pub(super) place: usize,
    pub(super) _working: SyncSender<()>,
}

impl Worker {
    /// Scores until the queue is empty and nobody can fill it any more.
    pub(super) fn run(self) {
        let shop = &*self.shop;
        let alone = Batching::default();
        let mut jobs = Vec::new();
        loop {
            let batching = if shop.does_not_batch.load(Ordering::Relaxed) { &alone } else { &shop.batching };
            if !shop.queue.take(&mut jobs, batching) {
                return;
            }
            let Some(mut instance) = shop.instances.take(self.place) else { return };
            jobs.retain(|job| !job.answer.is_closed());
            if jobs.len() > 1 {
                shop.score_as_one(&mut instance, &mut jobs);
            }
            for Job { inputs, enqueued, answer } in jobs.drain(..) {
                let result = instance.score(&shop.name, &inputs, enqueued.elapsed());
                if let Ok(scored) = &result {
                    shop.counted(batch::rows(&inputs), scored.computed);
                }
                let _ = answer.send(result);
            }
        }
    }
}

impl Workshop {
    /// Scores several requests as one and answers them; leaves them where that can't be done.
    fn score_as_one(&self, instance: &mut Instance<'_>, jobs: &mut Vec<Job>) {
        let inputs: Vec<&Tensors> = jobs.iter().map(|job| &*job.inputs).collect();
        let begun = Instant::now();
        let Some(joined) = batch::join(&inputs) else { return };
        let Ok(scored) = instance.score(&self.name, &Arc::new(joined), Duration::ZERO) else { return };
        let rows: Vec<usize> = inputs.iter().filter_map(|inputs| batch::rows(inputs)).collect();
        self.counted(Some(rows.iter().sum()), scored.computed);
        let Some(outputs) = batch::split(&scored.outputs, &rows) else {
            if !self.does_not_batch.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    model = %self.name,
                    "its outputs have other rows than its inputs: requests are scored alone, whatever max_batch says"
                );
            }
            return;
        };
        for (Job { inputs, enqueued, answer }, outputs) in jobs.drain(..).zip(outputs) {
            let queued = begun.saturating_duration_since(enqueued);
            let _ = answer.send(Ok(Scored {
                inputs,
                outputs: outputs.into(),
                queued,
                computed: scored.computed,
            }));
        }
    }

    fn counted(&self, rows: Option<usize>, computed: Duration) {
        if let Some(rows) =
            rows.filter(|rows| self.batching.is_on() && *rows <= self.batching.max_rows as usize)
        {
            self.counters.batch(rows, computed);
        }
    }
}
