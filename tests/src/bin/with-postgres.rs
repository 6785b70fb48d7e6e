//! Runs a command with a PostgreSQL of its own, whose URL is in `EDGEWISE_TEST_DATABASE`; ends with its exit code.

use std::process::{Command, ExitCode};

use e2e::postgres::Postgres;
use e2e::process::Failure;

fn main() -> Result<ExitCode, Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (program, rest) = arguments.split_first().ok_or("usage: with-postgres COMMAND [ARGUMENT…]")?;
    let postgres = Postgres::start(&e2e::fresh_directory("with-postgres")?)?;
    let status = Command::new(program).args(rest).env("EDGEWISE_TEST_DATABASE", &postgres.url).status();
    let status = status.map_err(|error| format!("running {program}: {error}"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
