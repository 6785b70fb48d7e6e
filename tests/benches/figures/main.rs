//! `cargo bench`: what the product costs over the bare thing, measured as built for release.
//!
//! Each bench is a file of its own; `measure` has the rules of comparison. Nothing is asserted: figures depend on the
//! machine, so each ratio is against a peer that ran in turns with ours. `cargo bench -- scorer pull` runs only these.

#![expect(
    clippy::indexing_slicing,
    reason = "only JSON values are indexed, which give null for what is not there"
)]

mod azureml;
mod caller;
mod floor;
mod footprint;
mod installed;
mod measure;
mod mqtt;
mod pull;
mod sample;
mod scorer;
mod serving;
mod site;
mod socket;
mod spool;
mod triton;
mod work;

use std::path::Path;
use std::process::{Command, ExitCode};

use e2e::process::{Failure, program};

type Bench = fn(&Path) -> Result<(), Failure>;

const BENCHES: [(&str, Bench); 9] = [
    ("scorer", scorer::measure),
    ("serving", serving::measure),
    ("azureml", azureml::measure),
    ("triton", triton::measure),
    ("capture", serving::capture),
    ("mqtt", mqtt::measure),
    ("spool", spool::measure),
    ("pull", pull::measure),
    ("footprint", footprint::measure),
];

fn main() -> ExitCode {
    // cargo itself passes `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let done = match wanted.split_first() {
        Some((first, arguments)) if first == floor::FLOOR => floor::serve(arguments),
        Some((first, arguments)) if first == mqtt::ECHO => mqtt::echo(arguments),
        _ => run(&wanted),
    };
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

/// Builds the programs as they ship, and puts them where those of the tests are looked for.
fn build() -> Result<(), Failure> {
    // Set by `cargo bench`; without it the programs were put there by whoever started this.
    if std::env::var_os("CARGO").is_none() {
        return Ok(());
    }
    let root = e2e::repository();
    let status = Command::new(root.join("cross/build")).env_remove("CARGO_TARGET_DIR").status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(format!("the programs could not be built: {status}")),
        Err(error) => return Err(format!("running cross/build: {error}")),
    }
    for name in ["edgewise-agent", "edgewise"] {
        let built = root.join("target/cross").join(std::env::consts::ARCH).join(name);
        let copied = std::fs::copy(&built, program(name));
        copied.map_err(|error| format!("copying {}: {error}", built.display()))?;
    }
    Ok(())
}
