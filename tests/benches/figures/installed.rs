//! A peer that pip installs, and that it answers as ours does.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::client::Client;
use e2e::files;
use e2e::process::Failure;
use serde_json::Value;

use crate::measure::skipped;

/// How far a number may be from the other's, absolutely and of that: what two builds of ONNX Runtime may differ by.
const TOLERANCE: [f64; 2] = [1e-6, 1e-4];

/// The virtual environment of a bench with these words for `pip install`, made where it is not there yet. Where it can't be had,
/// the bench is shown as skipped.
pub(crate) fn installed(bench: &str, wanted: &[&str]) -> Option<PathBuf> {
    let made = make(&e2e::target_root().join(format!("{bench}-venv")), wanted);
    let refused = |why| skipped(bench, &format!("pip can't install {}: {why}", wanted.join(" ")));
    made.map_err(refused).ok()
}

/// Both addresses answer the same to the same. What only describes the server, beside the outputs, may differ.
pub(crate) fn same_answer(addresses: [&str; 2], path: &str, body: &Value) -> Result<(), Failure> {
    let ask = |address: &str| {
        let answer = Client::new(&format!("http://{address}")).post(path, body)?;
        if answer.status != 200 {
            return Err(format!("{address}: {}", answer.text));
        }
        let answer = answer.json();
        Ok(answer.get("outputs").cloned().unwrap_or(answer))
    };
    let [ours, theirs] = addresses.map(ask);
    let (ours, theirs) = (ours?, theirs?);
    if agrees(&ours, &theirs) { Ok(()) } else { Err(format!("ours is {ours}, the peer's {theirs}")) }
}

fn agrees(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Array(ours), Value::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| agrees(ours, theirs))
        }
        (Value::Object(ours), Value::Object(theirs)) => {
            ours.len() == theirs.len()
                && ours.iter().all(|(name, value)| theirs.get(name).is_some_and(|other| agrees(value, other)))
        }
        _ => match (ours.as_f64(), theirs.as_f64()) {
            (Some(ours), Some(theirs)) => {
                let [absolute, relative] = TOLERANCE;
                (ours - theirs).abs() <= absolute + relative * theirs.abs()
            }
            _ => ours == theirs,
        },
    }
}

fn make(venv: &Path, wanted: &[&str]) -> Result<PathBuf, Failure> {
    let (stamp, words) = (venv.join("stamp"), wanted.join(" "));
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == words) {
        return Ok(venv.to_owned());
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(venv))?;
    let mut pip = Command::new(venv.join("bin/pip"));
    run(pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(wanted))?;
    files::write(&stamp, words)?;
    Ok(venv.to_owned())
}

fn run(command: &mut Command) -> Result<(), Failure> {
    let output = command.output();
    let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", command.get_program().display());
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failed(&String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(failed(&error)),
    }
}
