//! Whether the clock can be believed.

use serde::Serialize;

use super::files::Root;
use crate::clock::{EARLIEST_MS, wall_ms};

/// The wall clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Clock {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// Whether that can be true.
    pub plausible: bool,
    /// Whether another clock keeps it right, as NTP does; `None` where the system does not say.
    pub synchronised: Option<bool>,
    /// Whether the board has a clock that runs on without power.
    pub hardware: bool,
}

impl Clock {
    pub(super) fn read(root: &Root) -> Self {
        let unix_ms = wall_ms();
        Self {
            unix_ms,
            plausible: unix_ms >= EARLIEST_MS,
            synchronised: synchronised(),
            hardware: root.has("/sys/class/rtc/rtc0"),
        }
    }
}

/// What the kernel says, whoever keeps its clock right.
fn synchronised() -> Option<bool> {
    let mut state = std::mem::MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: all of a zeroed `timex` is valid, and with no mode set it is only written to.
    let state = unsafe { (libc::adjtimex(state.as_mut_ptr()) >= 0).then(|| state.assume_init())? };
    Some(state.status & libc::STA_UNSYNC == 0)
}
