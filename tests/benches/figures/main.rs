//! `cargo bench`: what the product costs over the bare thing, measured as built for release.
//!
//! Each bench is a file of its own; `measure` has the rules of comparison. Nothing is asserted: figures depend on the
//! machine, so each ratio is against a peer that ran in turns with ours. `cargo bench -- scorer pull` runs only these.

#![expect(
    clippy::indexing_slicing,
    reason = "only JSON values are indexed, which give null for what is not there"
)]

mod footprint;
mod http;
mod measure;
mod pull;
mod sample;
mod scorer;
mod site;
mod spool;

use std::path::Path;
use std::process::{Command, ExitCode};

use e2e::process::Failure;

type Bench = fn(&Path) -> Result<(), Failure>;

const BENCHES: [(&str, Bench); 5] = [
    ("scorer", scorer::measure),
    ("http", http::measure),
    ("spool", spool::measure),
    ("pull", pull::measure),
    ("footprint", footprint::measure),
];

fn main() -> ExitCode {
    // cargo itself passes `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let done = if wanted == [http::PEER] { http::peer() } else { run(&wanted) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("figures: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(wanted: &[String]) -> Result<(), Failure> {
    let known = BENCHES.map(|(name, _)| name);
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("there is no bench {unknown:?}; these are: {}", known.join(", ")));
    }
    build()?;
    // Beside what was built, because the system's temporary directory is often in memory, where nothing is durable.
    let directory = tempfile::tempdir_in(e2e::target_root());
    let directory = directory.map_err(|error| format!("making a directory to work in: {error}"))?;
    measure::head();
    for (name, bench) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            bench(directory.path()).map_err(|why| format!("{name}: {why}"))?;
        }
    }
    Ok(())
}

/// Builds the programs as they ship: without the features that dev-dependencies turn on.
fn build() -> Result<(), Failure> {
    // Set by `cargo bench`; without it the programs were built by whoever started this.
    let Ok(cargo) = std::env::var("CARGO") else { return Ok(()) };
    let build = Command::new(cargo).args(["build", "--quiet", "--release", "--workspace", "--bins"]).status();
    match build {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the programs could not be built: {status}")),
        Err(error) => Err(format!("running cargo build: {error}")),
    }
}
