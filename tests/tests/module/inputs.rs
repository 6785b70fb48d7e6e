//! Messages that can't be scored, or not yet: each is answered once, and none stops those behind it.

use e2e::data::{self, MODEL};
use e2e::edge::Times;
use e2e::files;
use e2e::module::Module;
use e2e::process::Failure;
use serde_json::{Value, json};

#[test]
fn every_bad_message_yields_one_error_and_the_flow_goes_on() -> Result<(), Failure> {
    let module = Module::start("inputs")?;
    let routes = json!([
        {"input": "readings", "model": MODEL, "output": "predictions"},
        {"input": "lost", "model": "nothing", "output": "predictions"},
        {"input": "numbers", "model": "identity", "output": "numbers"},
    ]);
    let identity = e2e::target_root().join("test-models/types/identity_f64.onnx");
    let mut identity = module.bundle_of(&identity, 3)?;
    identity["settings"] = json!({"collect": {"enabled": false}});
    module.edge.patch_desired(&json!({"routes": routes, "models": {"identity": identity}}));
    module.edge.wait_for_reported(|reported| reported["models"]["identity"]["phase"] == "active")?;
    let windows = data::test_split()?;
    let good = json!({"data": [windows[0].load]}).to_string();
    // Each of these takes three times as much in the answer.
    let many = format!("[1e9{}]", ",1e9".repeat(25_000));
    let long = "!".repeat(25_000);
    let bad: [(&str, Option<String>, &[u8], &str); 10] = [
        ("readings", None, b"nonsense", "can't be read"),
        ("readings", None, b"", "can't be read"),
        ("readings", None, b"{\"data\": [[1, 2]]}", "load"),
        ("readings", None, b"{\"data\": [[\"x\"]]}", "load"),
        ("readings", None, b"{\"other\": 1}", "load"),
        ("readings", None, b"\xff\xfe", "can't be read"),
        ("unknown", None, b"{}", "unknown"),
        ("lost", None, b"{}", "nothing"),
        ("numbers", None, many.as_bytes(), "the answer has"),
        ("readings", Some(format!("x={long}")), good.as_bytes(), "topic"),
    ];
    for (number, (input, bag, body, says)) in bad.iter().enumerate() {
        match bag {
            None => module.edge.send_input(input, &[("$.cid", "bad"), ("site", "a b")], body)?,
            Some(bag) => module.edge.send_input_as(input, Some(bag), body)?,
        }
        module.send("readings", number..number + 1, &windows)?;
        let error = module.edge.wait_for_output("errors", number + 1)?.remove(number);
        let text = error.json()?;
        assert_eq!(text["input"], *input);
        assert!(text["error"].as_str().is_some_and(|error| error.contains(says)), "{text}");
        if bag.is_none() {
            assert_eq!((error.property("$.cid"), error.property("site")), ("bad", "a b"));
        }
    }
    module.all_answered("predictions", bad.len())?;
    assert_eq!(module.edge.wait_for_output("errors", bad.len())?.len(), bad.len());

    // An id beyond what IoT Hub takes ties the answer to its question, and stands in no row.
    let long = "m".repeat(20_000);
    module.edge.send_input("readings", &[("$.mid", &long)], good.as_bytes())?;
    let answer = module.edge.wait_for_output("predictions", bad.len() + 1)?.remove(bad.len());
    assert_eq!(answer.property("$.cid"), long);

    // Whoever says that it is CBOR is answered in CBOR.
    let cbor = serde_cbor::to_vec(&json!({"data": [windows[0].load]})).map_err(|error| error.to_string())?;
    module.edge.send_input("readings", &[("$.ct", "application/cbor")], &cbor)?;
    let answer = module.edge.wait_for_output("predictions", bad.len() + 2)?.remove(bad.len() + 1);
    assert_eq!((answer.property("$.ct"), answer.property("$.ce")), ("application/cbor", ""));
    let body: Value = serde_cbor::from_slice(&answer.body).map_err(|error| error.to_string())?;
    assert_eq!(body["model"], MODEL);
    module.flush()?;
    for message in module.edge.wait_for_output("telemetry", 1)? {
        for row in message.json()?["rows"].as_array().into_iter().flatten() {
            let ids = ["requestId", "correlationId"].map(|key| row[key].as_str().map(str::len));
            assert!(ids.iter().all(|length| length.is_some_and(|length| length <= 128)), "{row}");
        }
    }
    let count = |name: &str| module.client()?.metric(name);
    assert_eq!(count("edgewise_module_inputs_total")?, 2 * bad.len() as u64 + 2);
    assert_eq!(count("edgewise_module_answered_total")?, bad.len() as u64 + 2);
    assert_eq!(count("edgewise_module_failed_total")?, bad.len() as u64);
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn messages_that_come_before_their_model_wait_for_it() -> Result<(), Failure> {
    let mut module = Module::new("inputs-early", Times::default())?;
    let late = module.directory.join("late.bundle");
    let mut wanted = module.bundle(1)?;
    let there =
        wanted["source"].as_str().and_then(|source| source.strip_prefix("file://")).unwrap_or_default();
    let bytes = std::fs::read(there).map_err(|error| error.to_string())?;
    wanted["source"] = format!("file://{}", late.display()).into();
    let routes = json!([{"input": "readings", "model": MODEL, "output": "predictions"}]);
    module.edge.set_desired(&json!({"models": {MODEL: wanted}, "routes": routes}));
    let windows = data::test_split()?;
    // They wait in edgeHub when the agent comes for the first time, and come before it has read its twin.
    module.send("readings", 0..3, &windows)?;
    module.send("amlInput", 0..3, &windows)?;
    module.run()?;
    let is_waiting = |reported: &Value| reported["models"][MODEL]["why"].is_string();
    module.edge.wait_for_reported(is_waiting)?;
    assert_eq!(module.edge.waiting_inputs(), 6);
    // To stop does not wait for the model.
    module.stop()?;
    module.run()?;
    assert_eq!(module.edge.waiting_inputs(), 6);
    files::write(&late, bytes)?;
    module.all_answered("predictions", 3)?;
    module.all_answered("amlOutput", 3)?;
    let errors = module.edge.outputs().iter().filter(|output| output.name == "errors").count();
    assert_eq!(errors, 0);
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}
