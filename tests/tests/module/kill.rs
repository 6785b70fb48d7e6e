//! An agent that dies again and again under a stream of inputs: every one is answered, and rows add up.

use std::collections::BTreeSet;

use e2e::data::{self, MODEL};
use e2e::edge::Times;
use e2e::module::Module;
use e2e::process::Failure;
use e2e::site::{adds_up, exported};
use serde_json::json;

/// Messages of the stream.
const STREAM: usize = 400;

/// Answers after which the agent is killed: at its first, in the middle of its work, and twice close together.
const KILLS: [usize; 8] = [1, 3, 40, 90, 91, 170, 230, 310];

#[test]
fn no_input_and_no_counted_row_is_lost_to_kills() -> Result<(), Failure> {
    let mut module = Module::new("kill", Times::default())?;
    let cloud = module.registry("cloud")?;
    let mut wanted = module.bundle(1)?;
    wanted["source"] = "registry".into();
    let routes = json!([{"input": "readings", "model": MODEL, "output": "predictions"}]);
    module.edge.set_desired(&json!({
        "models": {MODEL: wanted}, "routes": routes, "registry": {"broker": cloud.mqtt},
    }));
    module.send("readings", 0..STREAM, &data::test_split()?)?;
    module.run()?;
    for answers in KILLS {
        module.answered("predictions", answers)?;
        module.kill();
        module.run()?;
    }
    // And while it comes back.
    module.kill();
    module.run()?;
    let answered = module.all_answered("predictions", STREAM)?;

    let ledger = module.flush()?;
    assert!(adds_up(&ledger), "{ledger}");
    assert_eq!((&ledger["captured"], &ledger["lost"]), (&ledger["uploaded"], &0.into()), "{ledger}");
    // What was counted as captured is in the registry, once; an input that came again has a row for each time.
    let rows = exported(&cloud, &module.directory.join("rows"))?;
    assert_eq!(rows.values().sum::<u64>(), ledger["captured"], "{ledger}");
    let known: BTreeSet<String> = answered.iter().map(ToString::to_string).collect();
    let times = |id: &String| answered.iter().filter(|number| number.to_string() == **id).count() as u64;
    assert!(rows.keys().all(|id| known.contains(id)));
    // Scored and captured, and killed before its answer left: once for each kill at most.
    assert!(rows.iter().all(|(id, rows)| *rows <= times(id) + KILLS.len() as u64));
    let lost = known.len() - rows.len();
    println!("{} answers to {STREAM} inputs; {lost} rows were not yet captured at a kill", answered.len());
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}
