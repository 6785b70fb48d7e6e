//! `soak [SCORES [SWAPS [RECONNECTS [VERSIONS]]]]`: what must not grow, over a long time; see [`e2e::soak`] and
//! [`e2e::bounds`]. A million scores, a thousand swaps, a thousand reconnects and 30 versions by default; 0 leaves one out.

use std::process::ExitCode;

use e2e::process::Failure;
use e2e::{bounds, soak};

/// A tenth of the scores and swaps is done on tract, which is slower.
const ON_TRACT: u64 = 10;

fn main() -> ExitCode {
    let given: Vec<Option<u64>> = std::env::args().skip(1).map(|word| word.parse().ok()).collect();
    if given.iter().any(Option::is_none) {
        eprintln!("usage: soak [SCORES [SWAPS [RECONNECTS [VERSIONS]]]]");
        return ExitCode::from(2);
    }
    let count = |place: usize, usual: u64| given.get(place).copied().flatten().unwrap_or(usual);
    let (scores, swaps, reconnects) = (count(0, 1_000_000), count(1, 1000), count(2, 1000));
    let versions = count(3, 30);
    let mut failed = false;
    let mut tell = |wanted: bool, run: &dyn Fn() -> Result<String, Failure>| {
        match wanted.then(run) {
            Some(Ok(told)) => println!("soak: {told}"),
            Some(Err(why)) => {
                failed = true;
                println!("soak: failed: {why}");
            }
            None => {}
        };
    };
    tell(scores > 0, &|| soak::scores(scores, "cpu"));
    tell(scores > 0, &|| soak::scores(scores / ON_TRACT, "tract"));
    tell(swaps > 0, &|| soak::swaps(swaps, "tract"));
    tell(versions > 0, &|| bounds::vault(versions));
    tell(versions > 0, &bounds::spool);
    tell(reconnects > 0, &|| soak::reconnects(reconnects));
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
