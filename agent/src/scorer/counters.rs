//! What a version has done.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::Signature;

use super::{ScoreRefused, Scored, rows};

/// What a version has done since it went live.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that were scored.
    pub success: AtomicU64,
    /// Times that the model was run for them: fewer, where several were scored as one.
    pub runs: AtomicU64,
    /// Rows in them.
    pub rows: AtomicU64,
    /// Requests refused because the queue was full.
    pub rejected: AtomicU64,
    /// Requests whose caller went away or ran out of time.
    pub canceled: AtomicU64,
    /// Requests that the engine could not score.
    pub failed: AtomicU64,
    /// Requests refused because their inputs were wrong.
    pub invalid: AtomicU64,
    /// Requests that wait or are being scored.
    pub pending: AtomicU64,
    /// When a request was last scored, in milliseconds since 1970; 0 for never.
    pub last_ms: AtomicU64,
    /// Time that requests waited, in microseconds.
    pub queue_us: AtomicU64,
    /// Time that the engine took, in microseconds.
    pub compute_us: AtomicU64,
    /// How often so many rows were scored at once and the microseconds that it took, where batching is on. As many entries
    /// as [`crate::settings::Batching::max_rows`] at most.
    batches: Mutex<BTreeMap<usize, (u64, u64)>>,
}

impl Counters {
    /// Counts a request as pending for as long as the answer lives.
    pub(super) fn pending(&self) -> Pending<'_> {
        count(&self.pending);
        Pending(&self.pending)
    }

    /// A request was refused before it was queued.
    pub(super) fn invalid(&self) {
        count(&self.invalid);
    }

    /// The model was run.
    pub(super) fn run(&self) {
        count(&self.runs);
    }

    /// So many rows were scored at once.
    pub(super) fn batch(&self, rows: usize, computed: Duration) {
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let (runs, micros_in_all) = batches.entry(rows).or_default();
        *runs += 1;
        *micros_in_all = micros_in_all.saturating_add(micros(computed));
    }

    /// For each number of rows that were scored at once, how often that was and the microseconds that it took in all.
    pub fn batches(&self) -> BTreeMap<usize, (u64, u64)> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A request has come to its end.
    pub(super) fn count(&self, signature: &Signature, result: &Result<Scored, ScoreRefused>) {
        match result {
            Ok(scored) => {
                self.last_ms.store(now_ms(), Ordering::Relaxed);
                count(&self.success);
                self.rows.fetch_add(rows(signature, &scored.inputs), Ordering::Relaxed);
                self.queue_us.fetch_add(micros(scored.queued), Ordering::Relaxed);
                self.compute_us.fetch_add(micros(scored.computed), Ordering::Relaxed);
            }
            Err(ScoreRefused::Busy(..)) => count(&self.rejected),
            Err(ScoreRefused::Timeout(_)) => count(&self.canceled),
            Err(ScoreRefused::Stopping(_)) => {}
            Err(_) => count(&self.failed),
        }
    }
}

/// A request that waits or is being scored.
pub(super) struct Pending<'a>(&'a AtomicU64);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
