//! The agent's binary; everything is in the library, so that tests can reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    edgewise_agent::cli::main()
}
