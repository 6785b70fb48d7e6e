//! Clients in Python, run in the environment that `tests/fetch-models` makes.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Failure, Process};

/// Longest time that a script may take, in seconds, so that no test waits for ever.
const LONGEST: &str = "120";

/// Runs `tests/clients/SCRIPT` and gives what it prints.
pub fn run(script: &str, arguments: &[&str]) -> Result<String, Failure> {
    let (python, script) = paths(script)?;
    let output = Command::new("timeout").arg(LONGEST).arg(python).arg(&script).args(arguments).output();
    let output = output.map_err(|error| format!("running {}: {error}", script.display()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{}: {}{}", script.display(), text(&output.stdout), text(&output.stderr)))
    }
}

/// Starts `tests/clients/SCRIPT`; what it complains of goes to `log`.
pub fn start(
    script: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
    log: &Path,
) -> Result<Process, Failure> {
    let (python, path) = paths(script)?;
    let path = path.display().to_string();
    let arguments = [&[path.as_str()], arguments].concat();
    Process::start_program(&python, script, arguments, environment, log)
}

fn paths(script: &str) -> Result<(PathBuf, PathBuf), Failure> {
    let python = crate::target_root().join("venv/bin/python");
    if !python.exists() {
        return Err(format!("there is no {}: run tests/fetch-models", python.display()));
    }
    Ok((python, crate::repository().join("tests/clients").join(script)))
}
