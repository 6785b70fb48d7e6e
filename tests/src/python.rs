//! Clients in Python, run in the environment that `tests/fetch-models` makes.

use std::process::Command;

use crate::process::Failure;

/// Runs `tests/clients/SCRIPT` and gives what it prints.
pub fn run(script: &str, arguments: &[&str]) -> Result<String, Failure> {
    let python = crate::target_root().join("venv/bin/python");
    if !python.exists() {
        return Err(format!("there is no {}: run tests/fetch-models", python.display()));
    }
    let script = crate::repository().join("tests/clients").join(script);
    let output = Command::new(python).arg(&script).args(arguments).output();
    let output = output.map_err(|error| format!("running {}: {error}", script.display()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{}: {}{}", script.display(), text(&output.stdout), text(&output.stderr)))
    }
}
