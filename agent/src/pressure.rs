//! Whether the board can bear what it does, as heat and memory tell, so that capture backs off before scoring must.
//!
//! Invariants:
//! - A level rises at once, and falls one step at a time, each only after [`CALM_LOOKS`] looks in a row that found it
//!   lower by a margin: capture does not flicker at a threshold.
//! - What a machine does not tell puts no pressure on it.
//! - Scoring is never refused here, and uploads go on: they are what makes room.

mod heat;
mod memory;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::contract;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::board::{Board, Root};
use crate::capture::Capture;
use crate::exposition::Kind;
use crate::metrics::Source;

/// Time between two looks. A passively cooled board warms by less than a degree a second, and eight degrees are left
/// when it counts as strained; a look reads some twenty small files.
pub const PERIOD: Duration = Duration::from_secs(5);

/// Looks in a row that must find a lower level before it is believed: half a minute, in which a board cools down
/// noticeably and what a burst of requests took is given back.
pub const CALM_LOOKS: u32 = 6;

/// Most characters of a reason that go up; the log has all of it.
const MAX_WHY: usize = 80;

/// How much a board has to bear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It goes well.
    #[default]
    Calm,
    /// Capture takes a smaller share.
    Strained,
    /// Capture takes nothing.
    Critical,
}

/// What a look found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pressure {
    /// By heat and throttling.
    pub heat: Level,
    /// By memory.
    pub memory: Level,
    /// Why it is not calm; empty where it is.
    pub why: String,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Calm => "calm",
            Self::Strained => "strained",
            Self::Critical => "critical",
        })
    }
}

impl Pressure {
    /// The higher one of both.
    pub fn level(&self) -> Level {
        self.heat.max(self.memory)
    }

    /// In the words of the contract.
    pub fn on_the_wire(&self) -> contract::Pressure {
        let why: String = self.why.chars().take(MAX_WHY).collect();
        let why = Some(why).filter(|why| !why.is_empty());
        contract::Pressure { level: self.level().to_string(), why }
    }
}

/// Looks again and again.
#[derive(Debug)]
pub struct Gauge {
    root: Root,
    heat: Steady,
    memory: Steady,
    /// How often the processor had been slowed down at the last look.
    throttled: Option<u64>,
}

impl Gauge {
    /// Of the system below `root`.
    pub fn new(root: Root) -> Self {
        Self { root, heat: Steady::default(), memory: Steady::default(), throttled: None }
    }

    /// The pressure now. Blocking: reads some small files.
    pub fn look(&mut self) -> Pressure {
        let heat = heat::read(&self.root, self.heat.level, &mut self.throttled);
        let memory = memory::read(&self.root, self.memory.level);
        let (heat_level, memory_level) = (self.heat.follow(heat.0), self.memory.follow(memory.0));
        let reason = |level: Level, why: String, what: &str| match level {
            Level::Calm => None,
            _ if why.is_empty() => Some(format!("{what} is recovering")),
            _ => Some(why),
        };
        let why = [reason(heat_level, heat.1, "heat"), reason(memory_level, memory.1, "memory")];
        let why = why.into_iter().flatten().collect::<Vec<_>>().join("; ");
        Pressure { heat: heat_level, memory: memory_level, why }
    }
}

/// The pressure of heat on a board as it was described, and why: one look, which knows of none before.
pub fn of_heat(board: &Board) -> (Level, String) {
    heat::judge(&board.sensors, &board.throttling, false, Level::Calm)
}

/// Looks until `stop`, and tells `capture` and whoever watches.
pub async fn run(
    gauge: Gauge,
    period: Duration,
    capture: Capture,
    known: watch::Sender<Pressure>,
    stop: CancellationToken,
) {
    let mut gauge = Some(gauge);
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Some(mut taken) = gauge.take() else { return };
        // Sensors on a slow bus are waited for off the network's threads.
        let look = tokio::task::spawn_blocking(move || (taken.look(), taken));
        let found = tokio::select! {
            () = stop.cancelled() => return,
            found = look => found,
        };
        let now = match found {
            Ok((now, back)) => {
                gauge = Some(back);
                now
            }
            Err(error) => {
                tracing::error!(%error, "looking after heat and memory has failed, and ends");
                return stop.cancelled().await;
            }
        };
        capture.set_pressure(now.level());
        let before = known.borrow().clone();
        if before.level() != now.level() {
            log(&before, &now);
        }
        // Words that only follow a falling temperature are no news.
        if (before.heat, before.memory) != (now.heat, now.memory) {
            known.send_replace(now);
        }
    }
}

/// The metrics.
pub fn source(known: watch::Receiver<Pressure>) -> Source {
    Arc::new(move |exposition| {
        let now = known.borrow().clone();
        let help = "How much the board has to bear: 0 calm, 1 strained, 2 critical.";
        let mut family = exposition.family("edgewise_pressure", Kind::Gauge, help);
        for (cause, level) in [("heat", now.heat), ("memory", now.memory)] {
            family.sample(&[("cause", cause)], level as u8);
        }
    })
}

fn log(before: &Pressure, now: &Pressure) {
    let level = now.level();
    match level {
        Level::Calm => tracing::info!(before = %before.level(), "the board is calm again; capturing all"),
        Level::Strained => {
            tracing::warn!(why = now.why, "the board is strained; capturing a quarter of the rows");
        }
        Level::Critical => {
            tracing::error!(why = now.why, "the board is in danger; scoring goes on, capturing nothing");
        }
    }
}

/// A level that rises at once and falls slowly.
#[derive(Debug, Default)]
struct Steady {
    level: Level,
    lower: u32,
}

impl Steady {
    fn follow(&mut self, found: Level) -> Level {
        if found >= self.level {
            self.level = found;
            self.lower = 0;
        } else {
            self.lower += 1;
            if self.lower >= CALM_LOOKS {
                self.lower = 0;
                self.level = if self.level == Level::Critical { Level::Strained } else { Level::Calm };
            }
        }
        self.level
    }
}

#[cfg(test)]
mod tests;
