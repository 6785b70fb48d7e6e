//! How the product and a peer are compared, and the table of what came out.
//!
//! Invariants:
//! - Both run in turns, a few operations each, so that a machine that gets busy slows both.
//! - The first turn of each is not counted: it pays for caches, lazy set-up and connections.
//! - What is shown is the median of all operations, and ours over the peer's.

use std::time::{Duration, Instant};

use e2e::process::Failure;

/// What a figure counts.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// Time of one operation.
    Microseconds,
    /// Operations each second.
    PerSecond,
    /// 10⁶ bytes each second.
    MegabytesPerSecond,
    /// 2²⁰ bytes.
    Mebibytes,
}

/// What both measured, in the same unit, one value for each operation.
#[derive(Default)]
pub(crate) struct Compared {
    ours: Vec<f64>,
    peer: Vec<f64>,
}

/// Runs `ours` and `peer` in turns; each call gives what it measured.
pub(crate) fn in_turns(
    turns: usize,
    mut ours: impl FnMut() -> Result<Vec<f64>, Failure>,
    mut peer: impl FnMut() -> Result<Vec<f64>, Failure>,
) -> Result<Compared, Failure> {
    ours()?;
    peer()?;
    let mut compared = Compared::default();
    for _ in 0..turns {
        compared.ours.extend(ours()?);
        compared.peer.extend(peer()?);
    }
    Ok(compared)
}

/// Microseconds that each of so many operations took.
pub(crate) fn timed(
    operations: usize,
    mut operation: impl FnMut() -> Result<(), Failure>,
) -> Result<Vec<f64>, Failure> {
    let mut took = Vec::with_capacity(operations);
    for _ in 0..operations {
        let begun = Instant::now();
        operation()?;
        took.push(micros(begun.elapsed()));
    }
    Ok(took)
}

/// A time as [`Unit::Microseconds`].
pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A transfer as [`Unit::MegabytesPerSecond`].
pub(crate) fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}

/// The machine, how busy it is, and the head of the table.
pub(crate) fn head() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    let load: Vec<&str> = load.split_whitespace().take(3).collect();
    println!("{} × {cores}, load average {}", model.trim_matches(['\t', ' ', ':']), load.join(" "));
    line("figure (median)", "ours", "peer", "ratio", "the peer");
}

/// A figure beside its peer's.
pub(crate) fn compare(figure: &str, unit: Unit, peer: &str, compared: Compared) {
    let (ours, theirs) = (median(compared.ours), median(compared.peer));
    line(figure, &unit.show(ours), &unit.show(theirs), &format!("{:.2}", ours / theirs), peer);
}

/// A figure that has no peer.
pub(crate) fn alone(figure: &str, unit: Unit, values: Vec<f64>) {
    line(figure, &unit.show(median(values)), "", "", "");
}

/// A figure that can't be had here.
pub(crate) fn skipped(figure: &str, why: &str) {
    line(figure, "skipped", "", "", why);
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Microseconds => format!("{value:.1} µs"),
            Self::PerSecond => format!("{value:.0}/s"),
            Self::MegabytesPerSecond => format!("{value:.1} MB/s"),
            Self::Mebibytes => format!("{value:.1} MiB"),
        }
    }
}

fn line(figure: &str, ours: &str, peer: &str, ratio: &str, of: &str) {
    println!("{figure:<44} {ours:>12} {peer:>12} {ratio:>6}  {of}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
