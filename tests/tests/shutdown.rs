//! SIGTERM under load: what was accepted is answered, what was captured is kept, and the end comes in time.

use std::time::{Duration, Instant};

use e2e::client::Client;
use e2e::data::{self, MODEL, Window};
use e2e::process::{Failure, wait_until};
use e2e::site::{DEVICE, PATIENCE, Site};
use serde_json::{Value, json};

/// Requests that wait for the engine when the order to stop comes.
const WAITING: usize = 6;

#[test]
fn an_agent_that_is_told_to_stop_finishes_what_it_accepted() -> Result<(), Failure> {
    let mut site = Site::start("shutdown")?;
    let windows = data::test_split()?;
    site.bring(2)?;
    let body = all_at_once(&windows);
    // Each holds the whole test split, so that the engine is busy for a while.
    let client = site.client();
    let requests: Vec<_> = (0..WAITING)
        .map(|_| {
            let (client, body) = (client.clone(), body.clone());
            std::thread::spawn(move || client.post(&format!("/v2/models/{MODEL}/infer"), &body))
        })
        .collect();
    let watcher = Client::new(&site.agent.http);
    let deadline = Instant::now() + PATIENCE;
    while watcher.metric("nv_inference_pending_request_count")? < WAITING as u64 {
        assert!(Instant::now() < deadline, "the requests were answered before all of them waited");
    }
    let told = Instant::now();
    assert_eq!(site.agent.process.terminate()?, 0);
    assert!(told.elapsed() < Duration::from_secs(10), "it took {:?}", told.elapsed());
    for request in requests {
        let answer = request.join().map_err(|_| "a client's thread panicked")??;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }

    wait_until(PATIENCE, || {
        let device = site.cloud.json(&["device", "show", DEVICE])?;
        let gone = device["online"] == false && device["state"] == "stopping";
        if gone { Ok(()) } else { Err(format!("{} {}", device["online"], device["state"])) }
    })?;
    site.agent = e2e::site::start_agent(&site.directory, &site.broker.url)?;
    site.cloud.wait_for_phase(DEVICE, MODEL, 1, "active")?;
    let ledger = site.flush()?;
    let rows = (WAITING * windows.len()) as u64;
    assert_eq!((&ledger["captured"], &ledger["uploaded"]), (&rows.into(), &rows.into()), "{ledger}");
    Ok(())
}

fn all_at_once(windows: &[Window]) -> Value {
    let data: Vec<f32> = windows.iter().flat_map(|window| window.load.iter().copied()).collect();
    json!({"inputs": [{"name": "load", "shape": [windows.len(), 24], "datatype": "FP32", "data": data}]})
}
