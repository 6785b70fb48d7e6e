//! Callers who ask again and again, and how long their answers took.

use std::time::{Duration, Instant};

use axum::http::Method;
use tokio::task::JoinSet;

use super::endpoint::Call;
use super::server::{Server, Usage};

/// What one level measured.
pub(super) struct Measured {
    /// Answers with status 200, by how long they took.
    pub(super) times: Times,
    /// Other answers, and the first of them.
    pub(super) failed: u64,
    pub(super) first_failure: Option<String>,
    pub(super) elapsed: Duration,
    /// What the server used meanwhile.
    pub(super) usage: Option<Usage>,
}

/// Times, each to within one part in 128.
#[derive(Clone)]
pub(super) struct Times {
    counts: Vec<u64>,
    longest: Duration,
}

/// Has `callers` ask for `warm_up`, and then for `duration`, which counts.
///
/// # Errors
/// The server can't be reached, or ends a connection without an answer.
pub(super) async fn run(
    call: &Call,
    callers: usize,
    warm_up: Duration,
    duration: Duration,
    server: Option<&Server>,
) -> Result<Measured, String> {
    ask(call, callers, warm_up).await?;
    let (begun, before) = (Instant::now(), server.and_then(Server::processor_time));
    let mut measured = ask(call, callers, duration).await?;
    measured.elapsed = begun.elapsed();
    measured.usage = server.zip(before).and_then(|(server, before)| server.usage(before, measured.elapsed));
    Ok(measured)
}

async fn ask(call: &Call, callers: usize, duration: Duration) -> Result<Measured, String> {
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (call, mut connection) = (call.clone(), call.connect().await?);
        tasks.spawn(async move {
            let mut measured = Measured::default();
            let begun = Instant::now();
            loop {
                let asked = Instant::now();
                if asked - begun >= duration {
                    return Ok::<_, String>(measured);
                }
                match connection.send(&call, Method::POST).await? {
                    (200, _) => measured.times.add(asked.elapsed()),
                    (status, body) => {
                        measured.failed += 1;
                        let say = || format!("{status}: {}", String::from_utf8_lossy(&body));
                        measured.first_failure.get_or_insert_with(say);
                        if status == 404 || status == 400 {
                            return Err(say());
                        }
                    }
                }
            }
        });
    }
    let mut all = Measured::default();
    while let Some(ended) = tasks.join_next().await {
        let one = ended.map_err(|error| error.to_string())??;
        all.times.merge(&one.times);
        all.failed += one.failed;
        all.first_failure = all.first_failure.or(one.first_failure);
    }
    Ok(all)
}

impl Default for Measured {
    fn default() -> Self {
        Self { times: Times::default(), failed: 0, first_failure: None, elapsed: Duration::ZERO, usage: None }
    }
}

/// Buckets of each power of two.
const PARTS: u64 = 128;

impl Default for Times {
    fn default() -> Self {
        Self { counts: vec![0; (PARTS as usize) * 64], longest: Duration::ZERO }
    }
}

impl Times {
    fn add(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(nanos)) {
            *count += 1;
        }
        self.longest = self.longest.max(time);
    }

    fn merge(&mut self, other: &Times) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.longest = self.longest.max(other.longest);
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(super) fn longest(&self) -> Duration {
        self.longest
    }

    /// The time that `percent` of 100 do not exceed.
    pub(super) fn percentile(&self, percent: u64) -> Duration {
        let rank = (self.count() * percent).div_ceil(100);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank.max(1)
        });
        found.map_or(Duration::ZERO, |bucket| Duration::from_nanos(middle(bucket as u64)).min(self.longest))
    }
}

/// Small times have a bucket each; of the others each power of two has [`PARTS`].
fn bucket(nanos: u64) -> usize {
    let doublings = (nanos / PARTS).checked_ilog2().map_or(0, |log| u64::from(log) + 1);
    let part = if doublings == 0 { nanos } else { (nanos >> (doublings - 1)) - PARTS };
    (doublings * PARTS + part) as usize
}

fn middle(bucket: u64) -> u64 {
    let (doublings, part) = (bucket / PARTS, bucket % PARTS);
    match doublings.checked_sub(1) {
        None => part,
        Some(shift) => ((PARTS + part) << shift) + ((1 << shift) >> 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_is_near_its_middle() {
        for nanos in [0, 1, 127, 128, 129, 255, 256, 1000, 71_500, 1 << 40, u64::MAX / 4] {
            let middle = middle(bucket(nanos) as u64);
            assert!(middle.abs_diff(nanos) <= nanos / 128, "{nanos}: {middle}");
        }
        assert!(bucket(u64::MAX) < Times::default().counts.len());
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut times = Times::default();
        (1..=100).for_each(|millis| times.add(Duration::from_millis(millis)));
        let near = |percent: u64, millis: f64| {
            let found = times.percentile(percent).as_secs_f64() * 1e3;
            assert!((found - millis).abs() < millis / 100.0, "{percent}: {found}");
        };
        near(50, 50.0);
        near(99, 99.0);
        near(100, 100.0);
        assert_eq!((times.count(), times.longest()), (100, Duration::from_millis(100)));
        assert_eq!(Times::default().percentile(50), Duration::ZERO);
    }
}
