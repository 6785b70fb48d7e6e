//! The pressure on memory: how much is left of what the agent may use, and how long everyone waits for it.

use super::Level;
use crate::board::{Memory, Root, stalled};

/// The share of the memory that is left when it counts as strained, and as critical, and the bytes beyond which
/// no share matters: what a pull, a proof and a swap of a small model take together.
const STRAINED: (u64, u64) = (10, 128 << 20);
/// See [`STRAINED`].
const CRITICAL: (u64, u64) = (20, 48 << 20);

/// The share of time, in percent, in which everything waits for memory: at a tenth, answers come noticeably late; at
/// almost half, the machine does little else than swap.
const STALLED: f64 = 10.0;
/// See [`STALLED`].
const THRASHING: f64 = 40.0;

/// What there is, and why.
pub(super) fn read(root: &Root, held: Level) -> (Level, String) {
    let memory = Memory::read(root);
    let (mut level, mut why) = (Level::Calm, Vec::new());
    if let (Some(usable), Some(available)) = (memory.usable(), memory.available) {
        // A quarter more must be left before a level is left.
        let below = |at: Level, (part, most): (u64, u64)| {
            let threshold = (usable / part).min(most);
            available < if held >= at { threshold + threshold / 4 } else { threshold }
        };
        level = match () {
            () if below(Level::Critical, CRITICAL) => Level::Critical,
            () if below(Level::Strained, STRAINED) => Level::Strained,
            () => Level::Calm,
        };
        if level > Level::Calm {
            why.push(format!("{} of {} MiB of memory left", available >> 20, usable >> 20));
        }
    }
    if let Some(percent) = stalled(root) {
        let factor = |at: Level| if held >= at { 0.5 } else { 1.0 };
        let found = match percent {
            percent if percent >= THRASHING * factor(Level::Critical) => Level::Critical,
            percent if percent >= STALLED * factor(Level::Strained) => Level::Strained,
            _ => Level::Calm,
        };
        if found > Level::Calm {
            why.push(format!("everything waits for memory {percent:.0} % of the time"));
        }
        level = level.max(found);
    }
    (level, why.join(", "))
}
