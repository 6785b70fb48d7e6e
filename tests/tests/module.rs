//! The agent as a module of IoT Edge: deployed by its twin, fed by routes, driven by methods.

use std::time::Duration;

use e2e::data::{self, MODEL};
use e2e::edge::{Edge, Times};
use e2e::process::{Agent, Cloud, Failure};
use serde_json::json;

/// How long a method may take.
const METHOD: Duration = Duration::from_secs(20);

#[test]
fn a_twin_deploys_a_model_that_answers_inputs() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/module")?;
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
    cloud.register(&data::sample(Some(1)))?;
    let shown = cloud.json(&["model", "show", &format!("{MODEL}:1")])?;
    let edge = Edge::start(&directory.join("edge"), Times::default())?;
    edge.set_desired(&json!({
        "models": {MODEL: {"version": 1, "digest": shown["digest"]}},
        "registry": {"broker": cloud.mqtt, "device": "gate-1"},
        "logLevel": "debug",
    }));
    let environment = edge.environment();
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut agent = Agent::start_module(&directory.join("agent"), &environment)?;
    let reported = edge.wait_for_reported(|reported| reported["models"][MODEL]["phase"] == "active")?;
    println!("{reported:#}");
    let windows = data::test_split()?;
    for window in &windows[..3] {
        let body = json!({"data": [window.load]}).to_string();
        edge.send_input("amlInput", &[("site", "a b"), ("$.mid", "m 1")], body.as_bytes())?;
    }
    edge.send_input("amlInput", &[], b"nonsense")?;
    let outputs = edge.wait_for_output("amlOutput", 3)?;
    for output in &outputs {
        println!("{} {}", output.topic, output.json()?);
    }
    println!("{}", edge.wait_for_output("errors", 1)?[0].json()?);
    edge.wait_for_inputs()?;
    println!("{:?}", edge.invoke("ping", &json!({}), METHOD)?);
    println!("{:?}", edge.invoke("nothing", &json!({}), METHOD)?);
    println!("{:?}", edge.invoke("flush", &json!({}), METHOD)?);
    println!("{}", cloud.json(&["device", "show", "gate-1"])?);
    println!("stopped {:?}", agent.process.terminate());
    println!("{:#?}", edge.violations());
    println!("{:?}", edge.connects());
    Err("look".into())
}
