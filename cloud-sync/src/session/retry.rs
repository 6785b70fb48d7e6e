//! The pauses between attempts to connect.
//!
//! Invariants:
//! - A pause is never shorter than [`SHORTEST`] nor longer than what was asked for, however long the broker is away.
//! - Each is drawn evenly from all that it may be: those who lost a broker together come back one by one, over seconds
//!   after a short outage and over a minute after a long one.

use std::time::Duration;

/// A broker that refuses at once is not asked more often than this.
const SHORTEST: Duration = Duration::from_secs(1);

/// The most that the first pause may be: ten thousand devices that lose a broker for a moment are 3300 a second when they
/// come back, which one machine bears, and a device alone is back after 2.5 s.
const FIRST: Duration = Duration::from_secs(4);

/// The most that any pause may be where nothing else is asked for.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Pauses that get longer, without end.
pub(super) struct Pauses {
    most: Duration,
    longest: Duration,
}

impl Pauses {
    /// Begins with the shortest; none is longer than `longest`.
    pub(super) fn new(longest: Duration) -> Self {
        let longest = longest.max(SHORTEST);
        Self { most: FIRST.min(longest), longest }
    }

    /// The next pause. The most that it may be doubles each time.
    pub(super) fn next(&mut self) -> Duration {
        let pause = SHORTEST + (self.most - SHORTEST).mul_f64(fastrand::f64());
        self.most = self.most.saturating_mul(2).min(self.longest);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_their_bounds() {
        for longest in [Duration::ZERO, SHORTEST, 2 * SHORTEST, LONGEST_PAUSE, 10 * LONGEST_PAUSE] {
            let mut pauses = Pauses::new(longest);
            let longest = longest.max(SHORTEST);
            let drawn: Vec<Duration> = (0..1000).map(|_| pauses.next()).collect();
            assert!(drawn.iter().all(|pause| (SHORTEST..=longest).contains(pause)), "{drawn:?}");
            assert!(drawn[0] <= FIRST);
            let all: Duration = drawn.iter().sum();
            assert!(all > longest * 400, "{all:?}");
        }
    }

    #[test]
    fn a_herd_is_spread_over_the_whole_first_pause() {
        const HERD: usize = 10_000;
        let mut tenths = [0; 10];
        for _ in 0..HERD {
            let pause = Pauses::new(LONGEST_PAUSE).next();
            let share = (pause - SHORTEST).div_duration_f64(FIRST - SHORTEST);
            tenths[((share * 10.0) as usize).min(9)] += 1;
        }
        assert!(tenths.iter().all(|tenth| (HERD / 20..HERD / 5).contains(tenth)), "{tenths:?}");
    }
}
