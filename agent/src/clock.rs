//! The clocks of one run of the agent: one that only goes forward, and the wall's, which may be wrong and may jump.
//!
//! Invariants:
//! - Monotonic times of one run order what happened in it, whatever is done to the wall clock; sleep counts.
//! - The two are read together where both go out, so that whoever has a better clock can tell when the wall's was wrong.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cloud_sync::contract::Clock;

/// Before this (2025-01-01), the wall clock is surely wrong: no agent is that old.
pub const EARLIEST_MS: u64 = 1_735_689_600_000;

/// One run's clocks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RunClock {
    boot_id: String,
    begun: Duration,
}

impl RunClock {
    /// The clocks of a run that begins now.
    pub fn start(boot_id: &str) -> Self {
        Self { boot_id: boot_id.to_owned(), begun: since_boot() }
    }

    /// The run's name.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Nanoseconds since the run began.
    pub fn monotonic_ns(&self) -> u64 {
        u64::try_from(since_boot().saturating_sub(self.begun).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Both clocks now.
    pub fn now(&self) -> Clock {
        Clock { boot_id: self.boot_id.clone(), monotonic_ns: self.monotonic_ns(), wall_ms: wall_ms() }
    }
}

/// Milliseconds since 1970 by this device's clock; 0 for a clock before that.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The time since the system was started. Unlike the standard library's clock it goes on while the board sleeps.
fn since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec to write to. The call can't fail: every Linux has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanoseconds.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_s_time_goes_forward_from_nothing() {
        let clock = RunClock::start("b");
        let (first, second) = (clock.now(), clock.now());
        assert_eq!(first.boot_id, "b");
        assert!(first.monotonic_ns <= second.monotonic_ns);
        assert!(second.monotonic_ns < 1_000_000_000, "{second:?}");
        assert!(first.wall_ms > EARLIEST_MS);
    }
}
