//! A fleet that comes at once is known at once, and each of its devices is told what it shall run.

use std::time::Duration;

use e2e::fleet::measure;
use e2e::process::Failure;

#[test]
fn a_thousand_devices_that_connect_together_are_all_known_and_told() -> Result<(), Failure> {
    let fleet = measure(1000, Duration::from_secs(2))?;
    assert!(fleet.rows_per_second > 0.0 && fleet.bytes_per_second > 0.0, "nothing moved");
    Ok(())
}
