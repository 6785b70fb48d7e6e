//! What a bench has measured, as a table and as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::load::Measured;
use super::server::Usage;
use crate::cli::table::table;

/// All levels.
#[derive(Serialize)]
pub(super) struct Report {
    model: String,
    url: String,
    request_bytes: usize,
    levels: Vec<Level>,
}

/// What so many callers got.
#[derive(Serialize)]
struct Level {
    callers: usize,
    requests_per_second: f64,
    p50_us: f64,
    p90_us: f64,
    p95_us: f64,
    p99_us: f64,
    longest_us: f64,
    answered: u64,
    failed: u64,
    first_failure: Option<String>,
    server: Option<Usage>,
}

impl Report {
    pub(super) fn new(model: &str, url: &str, request_bytes: usize) -> Self {
        Self { model: model.to_owned(), url: url.to_owned(), request_bytes, levels: Vec::new() }
    }

    pub(super) fn add(&mut self, callers: usize, measured: Measured) {
        let Measured { times, failed, first_failure, elapsed, usage } = measured;
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let percentile = |percent| micros(times.percentile(percent));
        self.levels.push(Level {
            callers,
            requests_per_second: times.count() as f64 / elapsed.as_secs_f64(),
            p50_us: percentile(50),
            p90_us: percentile(90),
            p95_us: percentile(95),
            p99_us: percentile(99),
            longest_us: micros(times.longest()),
            answered: times.count(),
            failed,
            first_failure,
            server: usage,
        });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} at {}, {} bytes a request; times in µs\n", self.model, self.url, self.request_bytes)?;
        let head = [
            "callers",
            "requests/s",
            "p50",
            "p90",
            "p95",
            "p99",
            "longest",
            "failed",
            "cores",
            "resident MB",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for level in &self.levels {
            let server = |show: &dyn Fn(&Usage) -> String| level.server.as_ref().map_or("–".to_owned(), show);
            let times = [level.p50_us, level.p90_us, level.p95_us, level.p99_us, level.longest_us];
            let mut row = vec![level.callers.to_string(), format!("{:.0}", level.requests_per_second)];
            row.extend(times.map(|time| format!("{time:.0}")));
            row.push(level.failed.to_string());
            row.push(server(&|usage| format!("{:.2}", usage.cores)));
            row.push(server(&|usage| format!("{:.1}", usage.resident_bytes as f64 / f64::from(1 << 20))));
            rows.push(row);
        }
        f.write_str(&table(&rows))?;
        let failures = self.levels.iter().filter_map(|level| level.first_failure.as_deref());
        failures.take(1).try_for_each(|failure| writeln!(f, "\nnot answered: {}", failure.trim()))
    }
}
