//! `soak [SCORES [SWAPS [RECONNECTS [VERSIONS [MINUTES]]]]]`: what must not grow, over a long time; see [`e2e::soak`] and
//! [`e2e::bounds`]. A million scores, a thousand swaps and ten minutes of load with a full spool on each engine, a thousand
//! reconnects and 30 versions by default; 0 leaves one out.

use std::process::ExitCode;
use std::time::Duration;

use e2e::process::Failure;
use e2e::{bounds, soak};

/// What runs the models: ONNX Runtime, and tract.
const PROVIDERS: [&str; 2] = ["cpu", "tract"];

fn main() -> ExitCode {
    let given: Vec<Option<u64>> = std::env::args().skip(1).map(|word| word.parse().ok()).collect();
    if given.iter().any(Option::is_none) {
        eprintln!("usage: soak [SCORES [SWAPS [RECONNECTS [VERSIONS [MINUTES]]]]]");
        return ExitCode::from(2);
    }
    let count = |place: usize, usual: u64| given.get(place).copied().flatten().unwrap_or(usual);
    let (scores, swaps, reconnects) = (count(0, 1_000_000), count(1, 1000), count(2, 1000));
    let (versions, minutes) = (count(3, 30), count(4, 10));
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
    for provider in PROVIDERS {
        tell(scores > 0, &|| soak::scores(scores, provider));
        tell(swaps > 0, &|| soak::swaps(swaps, provider));
        tell(minutes > 0, &|| soak::outbox(Duration::from_secs(minutes * 60), provider));
    }
    tell(versions > 0, &|| bounds::vault(versions));
    tell(versions > 0, &bounds::spool);
    tell(reconnects > 0, &|| soak::reconnects(reconnects));
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
