//! Requests that are scored as one: each caller has what it would have had alone, and the model runs less often.

use e2e::client::Client;
use e2e::data::{self, MODEL, Window};
use e2e::process::{Agent, Failure, Process};
use serde_json::{Value, json};

/// Callers at once, each with its own windows.
const CALLERS: usize = 16;

/// Requests of each.
const REQUESTS: usize = 20;

/// As far as an engine that computes rows together may differ from itself alone.
const TOLERANCE: f64 = 1e-5;

#[test]
fn callers_that_are_scored_as_one_have_each_their_own_answers() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/batches")?;
    let windows = data::test_split()?;
    let alone = Agent::start_local(&directory.join("alone"), &data::sample(Some(2)), &[])?;
    let together = start(&directory.join("together"))?;
    let (alone, client) = (Client::new(&alone.http), Client::new(&together.http));
    // Every caller has another number of rows than those beside it, and other rows.
    let asked = |caller: usize| body(&windows, caller * 7, caller % 4 + 1);
    let expected: Vec<Value> =
        (0..CALLERS).map(|caller| outputs(&alone, &asked(caller))).collect::<Result<_, _>>()?;

    let calls = |caller: usize| -> Result<(), Failure> {
        let client = Client::new(&together.http);
        for _ in 0..REQUESTS {
            close(&outputs(&client, &asked(caller))?, &expected[caller])?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|caller| scope.spawn(move || calls(caller))).collect();
        callers
            .into_iter()
            .try_for_each(|caller| caller.join().map_err(|_| "a caller panicked".to_owned())?)
    })?;

    let requests = (CALLERS * REQUESTS) as u64;
    assert_eq!(client.metric("nv_inference_request_success")?, requests);
    let runs = client.metric("nv_inference_exec_count")?;
    assert!(runs * 2 <= requests, "{runs} runs for {requests} requests");
    let stats = client.get(&format!("/v2/models/{MODEL}/stats"))?.json()["model_stats"][0].clone();
    let batches = stats["batch_stats"].as_array().ok_or("no batch_stats")?;
    let sum = |of: fn(&Value) -> Option<u64>| batches.iter().filter_map(of).sum::<u64>();
    assert_eq!(stats["execution_count"], runs);
    assert_eq!(sum(|batch| batch["compute_infer"]["count"].as_u64()), runs);
    let rows = sum(|batch| Some(batch["batch_size"].as_u64()? * batch["compute_infer"]["count"].as_u64()?));
    assert_eq!(stats["inference_count"], rows);

    let config = client.get(&format!("/v2/models/{MODEL}/config"))?.json();
    assert_eq!(config["max_batch_size"], 16);
    assert_eq!(config["input"][0]["dims"], json!([24]), "the rows of a batch are no dimension");
    let batcher = json!({"preferred_batch_size": [8], "max_queue_delay_microseconds": 5000});
    assert_eq!(config["dynamic_batching"], batcher);
    Ok(())
}

fn start(data: &std::path::Path) -> Result<Agent, Failure> {
    std::fs::create_dir_all(data).map_err(|error| error.to_string())?;
    let (path, bundle) = (data.display().to_string(), data::sample(Some(2)).display().to_string());
    let arguments = ["run", "--local", &bundle, "--data", &path, "--http", "127.0.0.1:0"];
    let batching = [
        ("EDGEWISE_ENGINE_MAX_BATCH", "16"),
        ("EDGEWISE_ENGINE_MAX_DELAY", "5ms"),
        ("EDGEWISE_ENGINE_PREFERRED_BATCH", "8"),
    ];
    Agent::ready(Process::start("edgewise-agent", arguments, &batching, &data.join("agent.log"))?)
}

fn body(windows: &[Window], first: usize, rows: usize) -> Value {
    let load: Vec<f32> = windows.iter().cycle().skip(first).take(rows).flat_map(|w| w.load.clone()).collect();
    json!({"inputs": [{"name": "load", "datatype": "FP32", "shape": [rows, 24], "data": load}]})
}

fn outputs(client: &Client, body: &Value) -> Result<Value, Failure> {
    let answer = client.post(&format!("/v2/models/{MODEL}/infer"), body)?;
    if answer.status == 200 { Ok(answer.json()["outputs"].clone()) } else { Err(answer.text) }
}

/// Whether all numbers are as near as an engine keeps them, and all else is equal.
fn close(given: &Value, expected: &Value) -> Result<(), Failure> {
    let same = match (given, expected) {
        (Value::Number(given), Value::Number(expected)) => {
            let numbers = given.as_f64().zip(expected.as_f64());
            numbers.is_some_and(|(given, expected)| (given - expected).abs() <= TOLERANCE)
        }
        (Value::Array(given), Value::Array(expected)) if given.len() == expected.len() => {
            return given.iter().zip(expected).try_for_each(|(given, expected)| close(given, expected));
        }
        (Value::Object(given), Value::Object(expected)) if given.len() == expected.len() => {
            return given.iter().try_for_each(|(key, given)| close(given, &expected[key]));
        }
        (given, expected) => given == expected,
    };
    if same { Ok(()) } else { Err(format!("{given} instead of {expected}")) }
}
