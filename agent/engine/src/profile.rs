//! How long a model takes for one score.

use std::time::{Duration, Instant};

use crate::model::{Model, ScoreError};
use crate::tensor::Tensors;

/// Scores before the first that counts: they compile plans, grow arenas and warm caches.
const WARM_UP: usize = 3;

/// Scores at the least, so that a percentile means something however slow the model is.
const FEWEST: usize = 10;

/// Scores at the most: the times are kept, and more of them change no percentile.
const MOST: usize = 100_000;

/// Latency of one score in microseconds by nearest rank, and scores per second, one after the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// How many scores were timed.
    pub runs: usize,
    /// The median.
    pub p50: f64,
    /// 90 of 100 take at most this.
    pub p90: f64,
    /// 95 of 100 take at most this.
    pub p95: f64,
    /// 99 of 100 take at most this.
    pub p99: f64,
    /// Scores per second.
    pub throughput: f64,
}

/// Scores `inputs` again and again for about `budget`, at least 10 and at most 100,000 times.
///
/// # Errors
/// The model does not score the inputs.
pub fn latency(model: &mut dyn Model, inputs: &Tensors, budget: Duration) -> Result<Profile, ScoreError> {
    for _ in 0..WARM_UP {
        model.score(inputs)?;
    }
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < FEWEST || (start.elapsed() < budget && times.len() < MOST) {
        let before = Instant::now();
        model.score(inputs)?;
        times.push(before.elapsed());
    }
    let throughput = times.len() as f64 / start.elapsed().as_secs_f64();
    times.sort_unstable();
    let percentile = |percent: usize| nearest_rank(&times, percent).as_secs_f64() * 1e6;
    Ok(Profile {
        runs: times.len(),
        p50: percentile(50),
        p90: percentile(90),
        p95: percentile(95),
        p99: percentile(99),
        throughput,
    })
}

/// The smallest time that `percent` of 100 do not exceed; `times` are sorted.
fn nearest_rank(times: &[Duration], percent: usize) -> Duration {
    let rank = (times.len() * percent).div_ceil(100);
    times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<Duration> = (1..=10).map(Duration::from_millis).collect();
        assert_eq!(nearest_rank(&times, 50), Duration::from_millis(5));
        assert_eq!(nearest_rank(&times, 90), Duration::from_millis(9));
        assert_eq!(nearest_rank(&times, 91), Duration::from_millis(10));
        assert_eq!(nearest_rank(&times, 99), Duration::from_millis(10));
        assert_eq!(nearest_rank(&times[..1], 50), Duration::from_millis(1));
    }
}
