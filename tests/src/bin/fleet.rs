//! What a registry's fleet costs: `fleet COUNT…` prints a line of a table for each number of devices.

use std::time::Duration;

use e2e::fleet::{Measured, measure};
use e2e::process::Failure;

/// How long rows, and then chunks, are moved: as long as a receipt may take, so that what is sent again counts.
const MOVING: Duration = Duration::from_secs(20);

fn main() -> Result<(), Failure> {
    let counts: Result<Vec<usize>, _> = std::env::args().skip(1).map(|count| count.parse()).collect();
    let counts = counts.map_err(|_| "usage: fleet COUNT…".to_owned())?;
    println!(
        "| devices | all online | all told | all follow | rows/s | registry: cores, MB | chunks MB/s | registry: cores, MB | broker MB | shed by the registry | sent again |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for count in if counts.is_empty() { vec![100] } else { counts } {
        print(&measure(count, MOVING)?);
    }
    Ok(())
}

fn print(fleet: &Measured) {
    let mb = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "| {} | {:.1} s | {:.1} s | {:.1} s | {:.0} | {:.2}, {:.0} | {:.1} | {:.2}, {:.0} | {:.0} | {} | {} |",
        fleet.devices,
        fleet.storm.as_secs_f64(),
        fleet.fan_out.as_secs_f64(),
        fleet.followed.as_secs_f64(),
        fleet.rows_per_second,
        fleet.registry_rows.cores,
        mb(fleet.registry_rows.memory),
        fleet.bytes_per_second / f64::from(1 << 20),
        fleet.registry_chunks.cores,
        mb(fleet.registry_chunks.memory),
        mb(fleet.broker_memory),
        fleet.shed + fleet.dropped,
        fleet.again,
    );
}
