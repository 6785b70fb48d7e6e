//! What a version has done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::Signature;

use super::{ScoreRefused, Scored, rows};
use crate::histogram::Histogram;

/// What a version has done since it went live.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that were scored.
    pub success: AtomicU64,
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

    /// Counts a request as pending for as long as the answer lives.
    pub(super) fn pending(&self) -> Pending<'_> {
        count(&self.pending);
        Pending(&self.pending)
    }

    /// A request was refused before it was queued.
    pub(super) fn invalid(&self) {
        count(&self.invalid);
    }

    /// A request has come to its end.
    pub(super) fn count(&self, signature: &Signature, result: &Result<Scored, ScoreRefused>, took: Duration) {
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

/// A request that waits or is being scored.
pub(super) struct Pending<'a>(&'a AtomicU64);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn timed<T>(sum_ns: &AtomicU64, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    sum_ns.fetch_add(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    done
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
