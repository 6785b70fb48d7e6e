//! `kills [CYCLES] [SEED] [LOOP…]`: the loops of [`e2e::kills`], one after the other, 100 cycles each by default.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use e2e::kills::LOOPS;

/// Cycles of each loop where nothing else is said.
const CYCLES: u64 = 100;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut numbers = arguments.iter().map_while(|word| word.parse::<u64>().ok());
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (cycles, seed) = (numbers.next().unwrap_or(CYCLES), numbers.next().unwrap_or_else(clock));
    let wanted: Vec<&String> = arguments.iter().filter(|word| word.parse::<u64>().is_err()).collect();
    if let Some(unknown) = wanted.iter().find(|name| LOOPS.iter().all(|(known, _)| known != **name)) {
        eprintln!("kills: there is no loop {unknown}; usage: kills [CYCLES] [SEED] [LOOP…]");
        return ExitCode::from(2);
    }
    let mut failed = false;
    for (name, run) in LOOPS.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| *w == name))
    {
        match run(cycles, seed) {
            Ok(report) => println!("kills: {name}: {report}"),
            Err(why) => {
                failed = true;
                println!("kills: {name} failed with seed {seed}: {why}");
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
