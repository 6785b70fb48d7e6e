//! The agent's binary; everything is in the library, so that tests can reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    // SAFETY: there are no threads yet.
    unsafe { engine::send_no_telemetry() };
    edgewise_agent::cli::main()
}
