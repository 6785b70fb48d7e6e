//! Rows of a module without a registry: as JSON to edgeHub, whose acknowledgement is the only receipt.

use std::collections::BTreeMap;

use e2e::data::{self, Window};
use e2e::edge::Output;
use e2e::module::Module;
use e2e::process::Failure;
use e2e::site::adds_up;
use serde_json::{Value, json};

/// Largest message of IoT Edge.
const LARGEST: usize = 256 * 1024;

/// Windows in one request; each is a row.
const ROWS: u64 = 400;

#[test]
fn all_rows_leave_as_json_and_are_counted() -> Result<(), Failure> {
    let module = Module::start("telemetry")?;
    let windows = data::test_split()?;
    score(&module, &windows)?;
    score(&module, &windows)?;
    let ledger = module.flush()?;
    assert!(adds_up(&ledger), "{ledger}");
    assert_eq!(
        (&ledger["captured"], &ledger["uploaded"]),
        (&(2 * ROWS).into(), &(2 * ROWS).into()),
        "{ledger}"
    );
    let messages = module.edge.wait_for_output("telemetry", 1)?;
    for message in &messages {
        assert!(message.body.len() + message.topic.len() < LARGEST);
        assert_eq!((message.property("$.ct"), message.property("$.ce")), ("application/json", "utf-8"));
    }
    let rows = rows(&messages)?;
    assert!(rows.values().all(|copies| copies.len() == 1), "rows came twice");
    assert!(rows.keys().copied().eq(1..=2 * ROWS), "{:?}", rows.keys());
    let (first, window) = (&rows[&1][0], &windows[0]);
    let load: Vec<f64> =
        first["inputs"]["load"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    assert_eq!(
        load,
        window.load.iter().map(|value| json!(value).as_f64().unwrap_or(0.0)).collect::<Vec<_>>()
    );
    assert_eq!((&first["model"], &first["version"]), (&data::MODEL.into(), &1.into()));
    assert!(first["outputs"]["probabilities"].is_array() && first["correlationId"].is_string(), "{first}");

    // What edgeHub has not acknowledged is held.
    module.edge.disturb(|faults| faults.hold_pubacks = true);
    score(&module, &windows)?;
    module.wait_for_metric("edgewise_rows_held", |held| held == ROWS)?;
    module.edge.wait_for_output("telemetry", messages.len() + 1)?;
    assert_eq!(module.client()?.metric("edgewise_rows_held")?, ROWS);
    module.edge.disturb(|faults| faults.hold_pubacks = false);
    module.wait_for_metric("edgewise_rows_held", |held| held == 0)?;

    // A lost acknowledgement brings the same rows again, under the same numbers.
    module.edge.disturb(|faults| faults.cut_before_puback = 1);
    score(&module, &windows)?;
    module.wait_for_metric("edgewise_rows_uploaded_total", |uploaded| uploaded == 4 * ROWS)?;
    let rows = self::rows(&module.edge.wait_for_output("telemetry", 1)?)?;
    assert!(rows.keys().copied().eq(1..=4 * ROWS), "{:?}", rows.keys());
    assert!(rows.values().all(|copies| copies.iter().all(|copy| *copy == copies[0])));
    assert!(rows.values().any(|copies| copies.len() > 1), "nothing came again");
    module.edge.wait_for_reported(|reported| reported["ledger"]["uploaded"] == 4 * ROWS)?;
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn rows_wait_for_edge_hub_across_a_kill() -> Result<(), Failure> {
    let mut module = Module::start("telemetry-kill")?;
    let windows = data::test_split()?;
    module.edge.stop();
    score(&module, &windows)?;
    module.wait_for_metric("edgewise_rows_held", |held| held == ROWS)?;
    module.kill();
    module.run()?;
    module.edge.start_again()?;
    module.wait_for_metric("edgewise_rows_uploaded_total", |uploaded| uploaded == ROWS)?;
    // And again while they are on their way out.
    module.edge.disturb(|faults| faults.hold_pubacks = true);
    module.wait_for_serving(1, &windows[0])?;
    score(&module, &windows)?;
    let before = module.edge.wait_for_output("telemetry", 1)?.len();
    module.edge.wait_for_output("telemetry", before + 1)?;
    module.kill();
    module.edge.disturb(|faults| faults.hold_pubacks = false);
    module.run()?;
    let captured = module.wait_for_metric("edgewise_rows_captured_total", |captured| captured >= 2 * ROWS)?;
    let ledger = module.flush()?;
    assert!(adds_up(&ledger) && ledger["uploaded"] == captured, "{ledger}");
    let rows = rows(&module.edge.wait_for_output("telemetry", 1)?)?;
    assert!(rows.keys().copied().eq(1..=captured), "{:?}", rows.keys());
    assert!(rows.values().all(|copies| copies.iter().all(|copy| *copy == copies[0])));
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

/// Scores [`ROWS`] windows in one request.
fn score(module: &Module, windows: &[Window]) -> Result<(), Failure> {
    let data: Vec<&[f32]> =
        windows.iter().cycle().take(ROWS as usize).map(|window| window.load.as_slice()).collect();
    match module.client()?.post("/score", &json!({ "data": data }))? {
        answer if answer.status == 200 => Ok(()),
        answer => Err(format!("{}: {}", answer.status, answer.text)),
    }
}

/// Each row by its number, as often as it came. All are of one stream.
fn rows(messages: &[Output]) -> Result<BTreeMap<u64, Vec<Value>>, Failure> {
    let mut rows: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
    let mut stream = None;
    for message in messages {
        let body = message.json()?;
        assert_eq!(*stream.get_or_insert_with(|| body["stream"].clone()), body["stream"]);
        for row in body["rows"].as_array().into_iter().flatten() {
            let sequence =
                row["sequence"].as_u64().ok_or_else(|| format!("a row without a number: {row}"))?;
            rows.entry(sequence).or_default().push(row.clone());
        }
    }
    Ok(rows)
}
