//! The `edgewise` binary; see the library for what it does.

fn main() -> std::process::ExitCode {
    edgewise::cli::main()
}
