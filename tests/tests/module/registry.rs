//! The registry beside edgeHub: none, one, another, none; who decides what runs; and one that can't be spoken to.

use e2e::data::{self, MODEL};
use e2e::edge::{DEVICE, MODULE, Times};
use e2e::module::Module;
use e2e::process::{Cloud, Failure};
use e2e::site::{adds_up, exported};
use serde_json::{Value, json};

#[test]
fn the_registry_changes_while_the_agent_runs() -> Result<(), Failure> {
    let module = Module::start("registry")?;
    let (one, other) = (module.registry("one")?, module.registry("other")?);
    let windows = data::test_split()?;
    let score = |count: usize| -> Result<(), Failure> {
        windows.iter().take(count).try_for_each(|window| module.client()?.predict(window).map(drop))
    };
    score(10)?;
    assert_eq!(module.flush()?["uploaded"], 10);

    module.edge.patch_desired(&json!({"registry": {"broker": one.mqtt, "device": "gate-1"}}));
    connected(&module, true)?;
    score(20)?;
    assert_eq!(module.flush()?["uploaded"], 30);
    module.edge.patch_desired(&json!({"registry": {"broker": other.mqtt, "device": "gate-2"}}));
    other.wait_for_phase("gate-2", MODEL, 1, "active")?;
    // The registry before is told that the device has left it.
    e2e::process::wait_until(e2e::site::PATIENCE, || match one.json(&["device", "show", "gate-1"])? {
        device if device["online"] == false => Ok(()),
        device => Err(format!("still there: {device}")),
    })?;
    score(30)?;
    assert_eq!(module.flush()?["uploaded"], 60);
    module.edge.patch_desired(&json!({"registry": null}));
    connected(&module, false)?;
    score(40)?;
    let ledger = module.flush()?;
    assert!(adds_up(&ledger) && ledger["uploaded"] == 100, "{ledger}");

    let rows =
        |cloud: &Cloud, name: &str| Ok::<_, Failure>(exported(cloud, &module.directory.join(name))?.len());
    assert_eq!((rows(&one, "rows-one")?, rows(&other, "rows-other")?), (20, 30));
    let messages = module.edge.wait_for_output("telemetry", 1)?;
    let mut sent = 0;
    for message in messages {
        sent += message.json()?["rows"].as_array().map_or(0, Vec::len);
    }
    assert_eq!(sent, 50);
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn the_registry_decides_what_runs_until_the_twin_does() -> Result<(), Failure> {
    let mut module = Module::new("registry-decides", Times::default())?;
    let cloud = module.registry("cloud")?;
    let device = format!("{DEVICE}.{MODULE}");
    let link = json!({"broker": cloud.mqtt});
    module.edge.set_desired(&json!({ "registry": link }));
    module.run()?;
    connected(&module, true)?;
    deploy(&cloud, &device, 1)?;
    module.wait_for_active(1)?;
    cloud.wait_for_phase(&device, MODEL, 1, "active")?;
    module.send("amlInput", 0..3, &data::test_split()?)?;
    module.all_answered("amlOutput", 3)?;

    let mut wanted = module.bundle(2)?;
    wanted["source"] = "registry".into();
    module.edge.patch_desired(&json!({"models": {MODEL: wanted}}));
    module.wait_for_active(2)?;
    deploy(&cloud, &device, 1)?;
    // It hears of that, and does not follow.
    module.wait_for_log("the twin decides", 1)?;
    assert_eq!(module.edge.reported()["models"][MODEL]["active"], 2);
    // Now it is asked again, and says what it said last.
    module.edge.patch_desired(&json!({"models": null}));
    module.wait_for_active(1)?;
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn another_registrys_wish_is_followed_though_its_number_is_lower() -> Result<(), Failure> {
    let mut module = Module::new("registry-other", Times::default())?;
    let (one, other) = (module.registry("one")?, module.registry("other")?);
    let device = format!("{DEVICE}.{MODULE}");
    deploy(&other, &device, 1)?;
    deploy(&one, &device, 1)?;
    deploy(&one, &device, 2)?;
    module.edge.set_desired(&json!({"registry": {"broker": one.mqtt}}));
    module.run()?;
    module.wait_for_active(2)?;
    module.edge.patch_desired(&json!({"registry": {"broker": other.mqtt}}));
    module.wait_for_active(1)?;
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_registry_that_cannot_be_spoken_to_is_told_and_the_rest_goes_on() -> Result<(), Failure> {
    let module = Module::start("registry-wrong")?;
    let windows = data::test_split()?;
    let empty = module.directory.join("empty.pem").display().to_string();
    e2e::files::write(empty.as_ref(), "")?;
    let broker = "mqtts://127.0.0.1:1";
    for (registry, path) in [
        (json!({"broker": broker, "authorities": "/nowhere/ca.pem"}), "registry.authorities"),
        (
            json!({"broker": broker, "username": "u", "passwordFile": "/nowhere/password"}),
            "registry.passwordFile",
        ),
        (json!({"broker": broker, "authorities": empty}), "registry"),
    ] {
        module.edge.set_desired(&json!({"models": {MODEL: module.bundle(1)?}}));
        let version = module.edge.patch_desired(&json!({ "registry": registry }));
        let reported = module.edge.wait_for_reported(|reported| {
            let config = &reported["config"];
            config["appliedVersion"] == version && config["status"] == "error"
        })?;
        let errors = reported["config"]["errors"].clone();
        let is_named = |error: &Value| error["path"].as_str().is_some_and(|given| given.starts_with(path));
        assert!(errors.as_array().is_some_and(|errors| errors.iter().any(is_named)), "{path}: {errors}");
        assert_eq!(module.client()?.predict(&windows[0])?.0, 1);
    }
    module.send("amlInput", 0..3, &windows)?;
    module.all_answered("amlOutput", 3)?;
    // A broker that is right and away is no mistake.
    let version = module.edge.set_desired(&json!({
        "models": {MODEL: module.bundle(1)?}, "registry": {"broker": "mqtt://127.0.0.1:1"},
    }));
    assert_eq!(module.wait_for_applied(version)?["status"], "ok");
    connected(&module, false)?;
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

/// Waits until the twin says that the registry is connected, or is not.
fn connected(module: &Module, is: bool) -> Result<(), Failure> {
    module.edge.wait_for_reported(|reported| reported["registry"]["connected"] == is).map(drop)
}

fn deploy(cloud: &Cloud, device: &str, version: u64) -> Result<(), Failure> {
    cloud.text(&["deploy", &format!("{MODEL}:{version}"), "--device", device]).map(drop)
}
