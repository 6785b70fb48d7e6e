//! When a row was captured, by a device whose clock may be at 1970 or ten years ahead.
//!
//! Invariants:
//! - What the device's clock said stays in the row; what is made of it stands beside it, with its source.
//! - Rows of a run that are put right keep their distances: each is moved by what lies between two readings of a clock that
//!   only goes forward. A clock that was stepped by about the tolerance leaves some of them as they are.
//! - No row is put right by guessing: where the run that captured it has ended, its time is believed or it is not known.

use cloud_sync::contract::Clock;
use cloud_sync::rows::Row;

/// How far a device's clock may be off before it counts as wrong: more than a batch takes on the slowest link and than a
/// clock drifts in months, and less than a time zone.
const TOLERANCE_MS: u64 = 15 * 60 * 1000;

/// Where the time of a row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The device's clock, which was right as far as can be told.
    Device,
    /// The device's clock was wrong, and how long before the batch the row was captured is known.
    Corrected,
    /// The device's clock was wrong and nothing else is known: the time is that of receipt.
    Receipt,
}

/// The receipt of a batch, by which its rows' times are judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reception<'a> {
    /// When the batch came, in milliseconds since 1970.
    pub at_ms: u64,
    /// The device's clocks when it sent the batch.
    pub clock: Option<&'a Clock>,
}

impl Source {
    /// As it stands in the column.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Corrected => "corrected",
            Self::Receipt => "receipt",
        }
    }
}

impl Reception<'_> {
    /// When a row of the batch was captured, in milliseconds since 1970.
    pub(super) fn captured(&self, row: &Row) -> (u64, Source) {
        if let Some(clock) = self.clock.filter(|clock| clock.boot_id == row.boot_id) {
            // A clock that is right now is better than ours, for the batch has been on its way.
            let is_right = clock.wall_ms.abs_diff(self.at_ms) <= TOLERANCE_MS;
            let sent_ms = if is_right { clock.wall_ms } else { self.at_ms };
            let ago_ms = clock.monotonic_ns.saturating_sub(row.monotonic_ns) / 1_000_000;
            let captured_ms = sent_ms.saturating_sub(ago_ms);
            return match row.wall_ms.abs_diff(captured_ms) <= TOLERANCE_MS {
                true => (row.wall_ms, Source::Device),
                false => (captured_ms, Source::Corrected),
            };
        }
        match row.wall_sure && row.wall_ms <= self.at_ms.saturating_add(TOLERANCE_MS) {
            true => (row.wall_ms, Source::Device),
            false => (self.at_ms, Source::Receipt),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;
    const SECOND: u64 = 1000;
    const TEN_YEARS: u64 = 315_576_000 * SECOND;

    /// A row that was captured so many seconds into its run.
    fn row(boot_id: &str, at_s: u64, wall_ms: u64) -> Row {
        let wall_sure = wall_ms > 1_735_689_600_000;
        let row = super::super::table::tests::row(1.0, wall_ms);
        Row { boot_id: boot_id.into(), monotonic_ns: at_s * 1_000_000_000, wall_sure, ..row }
    }

    /// A batch that is sent 100 s into the run "b", and comes at [`NOW`].
    fn captured(row: &Row, wall_ms: u64) -> (u64, Source) {
        let clock = Clock { boot_id: "b".into(), monotonic_ns: 100_000_000_000, wall_ms };
        Reception { at_ms: NOW, clock: Some(&clock) }.captured(row)
    }

    #[test]
    fn a_clock_that_is_right_is_believed() {
        let sent = NOW - 2 * SECOND;
        assert_eq!(captured(&row("b", 40, sent - 60 * SECOND), sent), (sent - 60 * SECOND, Source::Device));
        assert_eq!(captured(&row("a", 40, NOW - TEN_YEARS / 10), sent).1, Source::Device);
    }

    #[test]
    fn rows_from_before_the_clock_was_put_right_get_their_time() {
        let sent = NOW - 2 * SECOND;
        for wrong in [40 * SECOND, NOW + TEN_YEARS, NOW - TEN_YEARS] {
            assert_eq!(captured(&row("b", 40, wrong), sent), (sent - 60 * SECOND, Source::Corrected));
        }
    }

    #[test]
    fn a_clock_that_is_still_wrong_is_replaced_by_ours() {
        for wrong in [100 * SECOND, NOW + TEN_YEARS, NOW - TEN_YEARS] {
            let (at, source) = captured(&row("b", 40, wrong - 60 * SECOND), wrong);
            assert_eq!((at, source), (NOW - 60 * SECOND, Source::Corrected));
        }
        let right = row("b", 40, NOW - 60 * SECOND);
        assert_eq!(captured(&right, NOW + TEN_YEARS), (NOW - 60 * SECOND, Source::Device));
    }

    #[test]
    fn of_a_run_that_has_ended_nothing_can_be_put_right() {
        for wrong in [40 * SECOND, NOW + TEN_YEARS, u64::MAX] {
            assert_eq!(captured(&row("a", 40, wrong), NOW), (NOW, Source::Receipt));
        }
        let alone = Reception { at_ms: NOW, clock: None };
        assert_eq!(alone.captured(&row("b", 40, 40 * SECOND)), (NOW, Source::Receipt));
        assert_eq!(alone.captured(&row("b", 40, NOW)), (NOW, Source::Device));
    }

    #[test]
    fn clocks_that_make_no_sense_are_no_harm() {
        let later = row("b", 400, 5);
        assert_eq!(captured(&later, NOW), (NOW, Source::Corrected));
        let clock = Clock { boot_id: "b".into(), monotonic_ns: u64::MAX, wall_ms: u64::MAX };
        let (at, _) = Reception { at_ms: 5, clock: Some(&clock) }.captured(&row("b", 0, u64::MAX));
        assert_eq!(at, 0);
    }
}
