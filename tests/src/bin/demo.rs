//! `cargo demo`: the whole journey on real data, narrated and verified; see [`e2e::demo`].

use std::process::ExitCode;

fn main() -> ExitCode {
    let stay = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--stay" => true,
        _ => {
            eprintln!("usage: cargo demo [-- --stay]");
            return ExitCode::from(2);
        }
    };
    match e2e::demo::run(stay) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("\ndemo failed: {why}");
            ExitCode::FAILURE
        }
    }
}
