//! The pressure of heat: how near the board is to switching itself off, and whether it is slowed down already.

use super::Level;
use crate::board::{Cause, Root, Sensor, Throttling, sensors};

/// Degrees below a sensor's critical point at which the board counts as strained, and as critical. Sensors are
/// right to a degree or two, and a load takes some seconds to let go.
const STRAINED: f64 = 8.0;
/// See [`STRAINED`].
const CRITICAL: f64 = 3.0;

/// Degrees that it must have cooled down by before a level is left.
const MARGIN: f64 = 3.0;

/// What there is, and why. `throttled` is how often the processor had been slowed down at the last look.
pub(super) fn read(root: &Root, held: Level, throttled: &mut Option<u64>) -> (Level, String) {
    let throttling = Throttling::read(root);
    let was = std::mem::replace(throttled, throttling.events);
    let grew = was.zip(throttling.events).is_some_and(|(was, is)| is > was);
    judge(&sensors(root), &throttling, grew, held)
}

/// What these say. `grew`: the processor has been slowed down since the last look.
pub(super) fn judge(sensors: &[Sensor], throttling: &Throttling, grew: bool, held: Level) -> (Level, String) {
    let (mut level, mut why) = (Level::Calm, Vec::new());
    for sensor in sensors {
        let found = of_sensor(sensor, held);
        if found > Level::Calm {
            let critical = sensor.critical.unwrap_or_default();
            why.push(format!("{} at {:.0} °C of {critical:.0} °C", sensor.name, sensor.celsius));
        }
        level = level.max(found);
    }
    // Too little voltage, or a first limit that is passed in everyday work, are no heat until they slow it down.
    if grew || throttling.now.contains(&Cause::Throttled) {
        level = level.max(Level::Strained);
        why.push(Cause::Throttled.to_string());
    }
    (level, why.join(", "))
}

fn of_sensor(sensor: &Sensor, held: Level) -> Level {
    let Some(headroom) = sensor.headroom() else { return Level::Calm };
    let within =
        |level: Level, degrees: f64| headroom <= if held >= level { degrees + MARGIN } else { degrees };
    if within(Level::Critical, CRITICAL) {
        Level::Critical
    } else if within(Level::Strained, STRAINED) {
        Level::Strained
    } else {
        Level::Calm
    }
}
