//! From a manifest to answers, a new version and back; and a stream of inputs that no break of the link may shorten.

use e2e::data::{self, MODEL};
use e2e::edge::{End, MODULE, Output, Times};
use e2e::module::Module;
use e2e::process::{Cloud, Failure};
use e2e::site::adds_up;
use serde_json::{Value, json};

/// Messages of a stream: enough for each break to come in its middle.
const STREAM: usize = 300;

#[test]
fn a_manifest_brings_a_model_that_is_updated_and_rolled_back() -> Result<(), Failure> {
    let mut module = Module::new("journey", Times::default())?;
    let cloud = module.registry("cloud")?;
    let windows = data::test_split()?;
    module.edge.set_desired(&manifest_twin(&module, &cloud, 1)?);
    module.run()?;
    module.wait_for_active(1)?;

    let body = json!({"data": [windows[0].load]}).to_string();
    let properties =
        [("$.mid", "m 1"), ("$.cid", "c/1"), ("$.ct", "text/plain"), ("site", "a b/ä"), ("empty", "")];
    module.edge.send_input("readings", &properties, body.as_bytes())?;
    let answer = module.edge.wait_for_output("predictions", 1)?.remove(0);
    let predicted = module.client()?.predict(&windows[0])?;
    assert_eq!(predicted.0, 1);
    assert_eq!(version_and_label(&answer)?, predicted);
    for (key, value) in [
        ("$.cid", "c/1"),
        ("$.ct", "application/json"),
        ("$.ce", "utf-8"),
        ("site", "a b/ä"),
        ("empty", ""),
        ("AzureMLResponse", ""),
    ] {
        assert_eq!(answer.property(key), value, "{key} of {}", answer.topic);
    }
    assert!(answer.properties.contains_key("empty") && !answer.properties.contains_key("$.cdid"));

    // Azure ML's own input and output go on beside the route.
    module.edge.send_input("amlInput", &[("$.mid", "m 2")], body.as_bytes())?;
    let answer = module.edge.wait_for_output("amlOutput", 1)?.remove(0);
    let scored = module.client()?.post("/score", &json!({"data": [windows[0].load]}))?;
    assert_eq!((scored.status, scored.text.as_bytes()), (200, answer.body.as_slice()));
    assert_eq!((answer.property("AzureMLResponse"), answer.property("$.cid")), ("OK", "m 2"));

    module.edge.set_desired(&manifest_twin(&module, &cloud, 2)?);
    module.wait_for_active(2)?;
    module.edge.send_input("readings", &[], body.as_bytes())?;
    let answers = module.edge.wait_for_output("predictions", 2)?;
    assert_eq!(version_and_label(&answers[1])?.0, 2);

    assert_eq!(module.invoke("rollback", json!({"model": MODEL}))?, (200, json!({"version": 1})));
    module.edge.wait_for_reported(|reported| {
        let model = &reported["models"][MODEL];
        model["phase"] == "rolled-back" && model["active"] == 1 && model["version"] == 2
    })?;
    module.edge.send_input("readings", &[], body.as_bytes())?;
    let answers = module.edge.wait_for_output("predictions", 3)?;
    assert_eq!(version_and_label(&answers[2])?.0, 1);

    let ledger = module.flush()?;
    assert!(adds_up(&ledger) && ledger["captured"] == 6, "{ledger}");
    module.stop()?;
    assert_eq!(module.edge.connects().pop().and_then(|connect| connect.end), Some(End::Disconnected));
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_cut_link_and_a_forgotten_session_lose_no_input() -> Result<(), Failure> {
    let module = Module::start("journey-cut")?;
    module.send("amlInput", 0..STREAM, &data::test_split()?)?;
    module.answered("amlOutput", 40)?;
    module.edge.cut();
    module.answered("amlOutput", 100)?;
    module.edge.forget_sessions();
    module.answered("amlOutput", 160)?;
    // An answer that edgeHub has, and does not say so; and one that it never got.
    module.edge.disturb(|faults| faults.cut_before_puback = 1);
    let answered = module.all_answered("amlOutput", STREAM)?;
    assert!(answered.len() > STREAM, "nothing came again: the breaks came when nothing was on its way");
    let connects = module.edge.connects();
    let present: Vec<bool> = connects.iter().map(|connect| connect.session_present).collect();
    assert_eq!(present, [false, true, false, true]);
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn held_acknowledgements_and_an_edge_hub_that_restarts_lose_no_input() -> Result<(), Failure> {
    let module = Module::start("journey-held")?;
    module.send("amlInput", 0..STREAM, &data::test_split()?)?;
    let before = module.answered("amlOutput", 40)?.len();
    module.edge.disturb(|faults| faults.hold_pubacks = true);
    // The flow comes to a stand: no input is acknowledged before its answer is.
    let held = module.answered("amlOutput", before + 1)?.len();
    assert!(module.edge.waiting_inputs() >= STREAM - held);
    module.edge.disturb(|faults| faults.hold_pubacks = false);
    module.answered("amlOutput", 120)?;
    module.edge.disturb(|faults| faults.hold_pubacks = true);
    module.edge.stop();
    module.edge.disturb(|faults| {
        faults.hold_pubacks = false;
        faults.cut_before_storing = 1;
    });
    module.edge.start_again()?;
    module.all_answered("amlOutput", STREAM)?;
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn an_agent_that_is_told_to_stop_says_so_and_the_rest_is_answered_after_its_restart() -> Result<(), Failure> {
    let mut module = Module::start("journey-stop")?;
    module.send("amlInput", 0..STREAM, &data::test_split()?)?;
    module.answered("amlOutput", 50)?;
    module.stop()?;
    assert!(module.edge.waiting_inputs() > 0, "all inputs were answered before the agent was told to stop");
    assert_eq!(module.edge.connects().pop().and_then(|connect| connect.end), Some(End::Disconnected));
    let reported = module.edge.reported();
    assert_eq!(reported["agent"]["state"], "stopping");
    let first_life = reported["agent"]["bootId"].clone();
    module.run()?;
    module.all_answered("amlOutput", STREAM)?;
    module.edge.wait_for_reported(|reported| {
        reported["agent"]["state"] == "running" && reported["agent"]["bootId"] != first_life
    })?;
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn an_edge_hub_that_says_nothing_does_not_keep_the_agent_from_stopping() -> Result<(), Failure> {
    let mut module = Module::start("journey-stop-held")?;
    module.edge.disturb(|faults| (faults.hold_pubacks, faults.twin_is_silent) = (true, true));
    module.send("amlInput", 0..5, &data::test_split()?)?;
    module.answered("amlOutput", 1)?;
    module.stop()?;
    // Nothing was acknowledged to whoever was not sure to have the answer.
    assert_eq!(module.edge.waiting_inputs(), 5);
    module.edge.disturb(|faults| (faults.hold_pubacks, faults.twin_is_silent) = (false, false));
    module.run()?;
    module.all_answered("amlOutput", 5)?;
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

/// What `edgewise module manifest` says to the module's twin to have a version of the sample.
fn manifest_twin(module: &Module, cloud: &Cloud, version: u64) -> Result<Value, Failure> {
    let path = module.directory.join("manifest.json").display().to_string();
    let (model, route) = (format!("{MODEL}:{version}"), format!("readings:{MODEL}:predictions"));
    let what = ["module", "manifest", &model, "--module", MODULE, "--image", "edgewise:0.1.0", "-o", &path];
    let how = ["--registry-broker", &cloud.mqtt, "--registry-insecure-remote", "--route", &route];
    cloud.text(&[&what[..], &how].concat())?;
    let manifest: Value =
        serde_json::from_str(&e2e::files::read(path.as_ref())?).map_err(|error| error.to_string())?;
    Ok(manifest["modulesContent"][MODULE]["properties.desired"].clone())
}

/// What a route's answer says.
fn version_and_label(answer: &Output) -> Result<(u64, i64), Failure> {
    let body = answer.json()?;
    let both = body["version"].as_u64().zip(body["outputs"]["label"][0].as_i64());
    both.filter(|_| body["model"] == MODEL).ok_or_else(|| format!("no prediction: {body}"))
}
