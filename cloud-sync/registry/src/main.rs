//! The `edgewise` binary; see the library for what it does.

fn main() -> std::process::ExitCode {
    // SAFETY: there are no threads yet.
    unsafe { engine::send_no_telemetry() };
    edgewise::cli::main()
}
