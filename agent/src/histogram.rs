//! How times spread: counted in fixed buckets, for whoever asks what the slowest hundredth took.
//!
//! Invariant: to record takes two additions, no lock and no memory, so that every request can be recorded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds: from what the smallest model takes to the longest time that a request has by
/// default, three a decade, so that a quantile is known within a factor of two and a half.
const BOUNDS_US: [u64; 21] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000, 20_000_000, 60_000_000,
];

/// Times by size.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for what is beyond the last.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Counts a time.
    pub fn record(&self, time: Duration) {
        let at = BOUNDS_US.partition_point(|bound| Duration::from_micros(*bound) < time);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// All times, summed.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed))
    }

    /// For each bound in seconds how many times were at most that; the last one is infinite.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS_US.iter().map(|bound| Duration::from_micros(*bound).as_secs_f64());
        let counts = self.buckets.iter().scan(0u64, |sum, bucket| {
            *sum = sum.saturating_add(bucket.load(Ordering::Relaxed));
            Some(*sum)
        });
        bounds.chain([f64::INFINITY]).zip(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_at_its_bound_and_above() {
        let histogram = Histogram::default();
        let times = [Duration::ZERO, Duration::from_micros(10), Duration::from_nanos(10_001)];
        times
            .into_iter()
            .chain([Duration::from_secs(60), Duration::from_secs(61)])
            .for_each(|time| histogram.record(time));
        let counts: Vec<(f64, u64)> = histogram.cumulative().collect();
        assert_eq!(counts.len(), 22);
        assert_eq!(counts[..2], [(0.00001, 2), (0.00002, 3)]);
        assert_eq!(counts[19..], [(20.0, 3), (60.0, 4), (f64::INFINITY, 5)]);
        assert_eq!(histogram.sum(), Duration::from_nanos(121_000_000_000 + 10_000 + 10_001));
    }
}
