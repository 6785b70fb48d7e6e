//! What a version has done.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::Signature;

use super::{ScoreRefused, Scored, rows};
use crate::histogram::Histogram;

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
    /// Time that reading inputs took, in nanoseconds: a small one takes less than a microsecond.
    pub input_ns: AtomicU64,
    /// Time that writing outputs took, in nanoseconds.
    pub output_ns: AtomicU64,
    /// Times of requests from their inputs to their outputs: in the queue, in the engine, and on the way there and back.
    pub request: Histogram,
    /// Times in the queue.
    pub queue: Histogram,
    /// Times in the engine.
    pub compute: Histogram,
    /// How often so many rows were scored at once and the nanoseconds that it took, where batching is on. As many entries
    /// as [`crate::settings::Batching::max_rows`] at most.
    batches: Mutex<BTreeMap<usize, (u64, u64)>>,
}

impl Counters {
    /// Does what reads the inputs of a request, and counts its time.
    pub fn reading<T>(&self, read: impl FnOnce() -> T) -> T {
        timed(&self.input_ns, read)
    }

    /// Does what writes the outputs of a request, and counts its time.
    pub fn writing<T>(&self, write: impl FnOnce() -> T) -> T {
        timed(&self.output_ns, write)
    }

    /// Counts a request as pending for as long as the answer lives, and as canceled where that is not told its end.
    pub(super) fn pending(&self) -> Pending<'_> {
        count(&self.pending);
        Pending { counters: self, ended: false }
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
        let (runs, in_all) = batches.entry(rows).or_default();
        *runs += 1;
        *in_all = in_all.saturating_add(nanoseconds(computed));
    }

    /// For each number of rows that were scored at once, how often that was and the nanoseconds that it took in all.
    pub fn batches(&self) -> BTreeMap<usize, (u64, u64)> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, signature: &Signature, result: &Result<Scored, ScoreRefused>, took: Duration) {
        match result {
            Ok(scored) => {
                self.last_ms.store(now_ms(), Ordering::Relaxed);
                count(&self.success);
                self.rows.fetch_add(rows(signature, &scored.inputs), Ordering::Relaxed);
                self.request.record(took);
                self.queue.record(scored.queued);
                self.compute.record(scored.computed);
            }
            Err(ScoreRefused::Busy(..)) => count(&self.rejected),
            Err(ScoreRefused::Timeout(_)) => count(&self.canceled),
            Err(ScoreRefused::Stopping(_)) => {}
            Err(_) => count(&self.failed),
        }
    }
}

/// A request that waits or is being scored. Its caller may go away, and what scores it is dropped then.
pub(super) struct Pending<'a> {
    counters: &'a Counters,
    ended: bool,
}

impl Pending<'_> {
    /// It has come to its end.
    pub(super) fn end(
        mut self,
        signature: &Signature,
        result: &Result<Scored, ScoreRefused>,
        took: Duration,
    ) {
        self.ended = true;
        self.counters.count(signature, result, took);
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.counters.pending.fetch_sub(1, Ordering::Relaxed);
        if !self.ended {
            count(&self.counters.canceled);
        }
    }
}

fn timed<T>(sum_ns: &AtomicU64, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    sum_ns.fetch_add(nanoseconds(begun.elapsed()), Ordering::Relaxed);
    done
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
