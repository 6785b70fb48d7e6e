//! What a process takes of memory and processor, from `/proc`.

use std::time::{Duration, Instant};

use crate::process::Failure;

/// A process to be measured.
pub(super) struct Meter {
    id: u32,
}

/// A moment from which on it is measured.
pub(super) struct Begin {
    at: Instant,
    processor: Duration,
}

/// What it took.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// Of the time, in cores.
    pub cores: f64,
    /// Resident memory at the end, in bytes.
    pub memory: u64,
}

impl Meter {
    pub(super) fn new(id: u32) -> Self {
        Self { id }
    }

    pub(super) fn begin(&self) -> Result<Begin, Failure> {
        Ok(Begin { at: Instant::now(), processor: self.processor()? })
    }

    pub(super) fn used_since(&self, begin: &Begin) -> Result<Used, Failure> {
        let processor = self.processor()?.saturating_sub(begin.processor);
        let cores = processor.as_secs_f64() / begin.at.elapsed().as_secs_f64();
        Ok(Used { cores, memory: self.memory()? })
    }

    /// Resident memory now, in bytes.
    pub(super) fn memory(&self) -> Result<u64, Failure> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| format!("process {} has no VmRSS", self.id))
    }

    fn processor(&self) -> Result<Duration, Failure> {
        let stat = self.read("stat")?;
        // The name before it may hold anything; user and system time are the 12th and 13th field behind it.
        let fields = stat.rsplit(") ").next().unwrap_or_default().split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
        // Linux counts in hundredths of a second for everybody.
        Ok(Duration::from_millis(ticks * 10))
    }

    fn read(&self, file: &str) -> Result<String, Failure> {
        let path = format!("/proc/{}/{file}", self.id);
        std::fs::read_to_string(&path).map_err(|error| format!("reading {path}: {error}"))
    }
}
