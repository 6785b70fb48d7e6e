//! A short form of the loops that kill programs at random; `tests/run kills` is the long one.

use e2e::kills::{self, Report};
use e2e::process::Failure;

/// Cycles of each loop here.
const CYCLES: u64 = 5;

/// The same for everybody; the long loops take another each time.
const SEED: u64 = 7;

#[test]
fn rows_survive_an_agent_that_is_killed_again_and_again() -> Result<(), Failure> {
    told(kills::agent(CYCLES, SEED))
}

#[test]
fn a_deployment_ends_well_though_the_agent_is_killed_in_each_phase() -> Result<(), Failure> {
    told(kills::deploy(CYCLES, SEED))
}

#[test]
fn versions_and_rows_survive_a_registry_that_is_killed_again_and_again() -> Result<(), Failure> {
    told(kills::registry(CYCLES, SEED))
}

#[test]
fn rows_survive_a_broker_that_is_killed_again_and_again() -> Result<(), Failure> {
    told(kills::broker(CYCLES / 2, SEED))
}

fn told(report: Result<Report, Failure>) -> Result<(), Failure> {
    report.map(|report| println!("{report}"))
}
