//! The twin, in all the ways in which it changes, lags, fails and makes no sense.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::data::{self, MODEL};
use e2e::edge::Times;
use e2e::files;
use e2e::module::Module;
use e2e::process::Failure;
use serde_json::{Map, Value, json};

#[test]
fn changes_that_were_missed_are_read_again() -> Result<(), Failure> {
    let module = Module::start("twin-gap")?;
    module.edge.disturb(|faults| faults.desired_is_silent = true);
    module.edge.patch_desired(&json!({"models": {MODEL: module.bundle(2)?}}));
    module.edge.disturb(|faults| faults.desired_is_silent = false);
    let version = module.edge.patch_desired(&json!({"logLevel": "debug"}));
    assert_eq!(module.wait_for_applied(version)?["status"], "ok");
    module.wait_for_active(2)?;

    // What changes while the link is away is told by nobody.
    module.edge.disturb(|faults| faults.desired_is_silent = true);
    module.edge.cut();
    let version = module.edge.patch_desired(&json!({"models": {MODEL: module.bundle(1)?}}));
    module.edge.disturb(|faults| faults.desired_is_silent = false);
    module.wait_for_applied(version)?;
    module.wait_for_active(1)?;

    // The identity is made anew, and versions begin again.
    module.edge.recreate_twin(json!({"models": {MODEL: module.bundle(2)?}}));
    module.edge.cut();
    module.wait_for_active(2)?;
    assert_eq!(module.edge.reported()["config"]["appliedVersion"], 1);
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_twin_that_edge_hub_never_saw_changes_nothing() -> Result<(), Failure> {
    let module = Module::start("twin-empty")?;
    module.edge.disturb(|faults| faults.twin_is_empty = true);
    module.edge.cut();
    module.edge.wait_for_connects(2)?;
    module.send("amlInput", 0..3, &data::test_split()?)?;
    module.all_answered("amlOutput", 3)?;
    let model = module.wait_for_active(1)?;
    assert_eq!(model["config"]["status"], "ok");
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_model_that_is_named_no_more_goes_and_the_others_stay() -> Result<(), Failure> {
    let mut module = Module::new("twin-null", Times::default())?;
    let route = |model: &str| json!({"input": "readings", "model": model, "output": model});
    module.edge.set_desired(&json!({
        "models": {MODEL: module.bundle(1)?, "second": module.bundle(2)?},
        "routes": [route(MODEL), route("second")],
    }));
    module.run()?;
    module.wait_for_active(1)?;
    module.edge.wait_for_reported(|reported| reported["models"]["second"]["phase"] == "active")?;
    let windows = data::test_split()?;
    module.send("readings", 0..3, &windows)?;
    module.all_answered(MODEL, 3)?;
    module.all_answered("second", 3)?;

    let version = module.edge.patch_desired(&json!({"models": {MODEL: null}}));
    let config = module.wait_for_applied(version)?;
    assert_eq!(config["status"], "ok", "{config}");
    module.edge.wait_for_reported(|reported| reported["models"][MODEL].is_null())?;
    // Each route answers for itself.
    module.send("readings", 3..4, &windows)?;
    module.edge.wait_for_inputs()?;
    assert_eq!(module.answered("second", 4)?.last(), Some(&3));
    let error = module.edge.wait_for_output("errors", 1)?.remove(0).json()?;
    assert!(error["error"].as_str().is_some_and(|error| error.contains(MODEL)), "{error}");

    // A section that is replaced has no more of the one before than it says; routes go back to Azure ML's.
    let version = module.edge.set_desired(&json!({"models": {MODEL: module.bundle(1)?}}));
    module.wait_for_applied(version)?;
    let reported = module.wait_for_active(1)?;
    assert!(reported["models"]["second"].is_null(), "{reported}");
    module.edge.send_input("readings", &[("$.mid", "4")], b"[]")?;
    let error = module.edge.wait_for_output("errors", 2)?.remove(1).json()?;
    assert!(error["error"].as_str().is_some_and(|error| error.contains("readings")), "{error}");
    module.send("amlInput", 0..1, &windows)?;
    module.all_answered("amlOutput", 1)?;
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn what_was_desired_holds_while_edge_hub_is_away() -> Result<(), Failure> {
    let mut module = Module::start("twin-away")?;
    let routes = json!([{"input": "readings", "model": MODEL, "output": "predictions"}]);
    let version =
        module.edge.patch_desired(&json!({"routes": routes, "models": {"gone": module.bundle(2)?}}));
    module.wait_for_applied(version)?;
    module.edge.wait_for_reported(|reported| reported["models"]["gone"]["phase"] == "active")?;
    module.edge.stop();
    module.kill();
    module.run()?;
    let window = data::test_split()?.remove(0);
    module.wait_for_serving(1, &window)?;
    // To stop does not wait for edgeHub.
    module.stop()?;
    module.run()?;
    module.wait_for_serving(1, &window)?;

    // What is reported of a former life is removed.
    module.send("readings", 0..3, &[window])?;
    module.edge.patch_desired(&json!({"models": {"gone": null}}));
    module.edge.start_again()?;
    module.all_answered("predictions", 3)?;
    module.edge.wait_for_reported(|reported| reported["models"]["gone"].is_null())?;
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn reports_of_an_agent_whose_disk_is_new_replace_those_of_the_old_one() -> Result<(), Failure> {
    let mut module = Module::start("twin-anew")?;
    let version = module.edge.patch_desired(&json!({"models": {"gone": module.bundle(2)?}}));
    module.wait_for_applied(version)?;
    module.edge.wait_for_reported(|reported| reported["models"]["gone"]["phase"] == "active")?;
    let first_life = module.edge.reported()["agent"]["bootId"].clone();
    module.kill();
    std::fs::remove_dir_all(module.directory.join("agent")).map_err(|error| error.to_string())?;
    module.edge.set_desired(&json!({"models": {MODEL: module.bundle(1)?}}));
    module.run()?;
    let reported = module.edge.wait_for_reported(|reported| {
        let model = &reported["models"][MODEL];
        reported["agent"]["bootId"] != first_life && model["phase"] == "active"
    })?;
    let models: Vec<&String> =
        reported["models"].as_object().into_iter().flat_map(|all| all.keys()).collect();
    assert_eq!(models, [MODEL]);
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn an_edge_hub_that_refuses_to_speak_of_the_twin_is_asked_again() -> Result<(), Failure> {
    let mut module = Module::new("twin-refused", Times::default())?;
    module.edge.set_desired(&json!({"models": {MODEL: module.bundle(1)?}}));
    module.edge.disturb(|faults| faults.twin_status = Some(429));
    module.run()?;
    module.wait_for_metric("edgewise_twin_failed_reads_total", |failed| failed >= 2)?;
    module.edge.disturb(|faults| faults.twin_status = None);
    module.wait_for_active(1)?;

    // Reports fail, too, and are made up for.
    module.edge.disturb(|faults| faults.twin_status = Some(500));
    let version = module.edge.patch_desired(&json!({"models": {MODEL: module.bundle(2)?}}));
    module.wait_for_metric("edgewise_twin_failed_reports_total", |failed| failed >= 2)?;
    module.edge.disturb(|faults| faults.twin_status = None);
    module.wait_for_active(2)?;
    module.wait_for_applied(version)?;
    assert_eq!(module.client()?.metric("edgewise_twin_refused_reports_total")?, 0);
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn an_edge_hub_that_is_silent_about_the_twin_is_asked_again_when_it_comes_back() -> Result<(), Failure> {
    let mut module = Module::new("twin-silent", Times::default())?;
    module.edge.set_desired(&json!({"models": {MODEL: module.bundle(1)?}}));
    module.edge.disturb(|faults| faults.twin_is_silent = true);
    module.run()?;
    module.edge.wait_for_connects(1)?;
    assert_eq!(module.invoke("ping", json!({}))?.0, 200);
    module.edge.cut();
    module.edge.disturb(|faults| faults.twin_is_silent = false);
    module.wait_for_active(1)?;
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn reports_come_one_at_a_time_and_a_second_apart() -> Result<(), Failure> {
    let module = Module::start("twin-rate")?;
    // Slow answers: a second report while the first is under way would be seen, and held against the module.
    module.edge.disturb(|faults| faults.twin_delay = Duration::from_millis(300));
    for _ in 0..4 {
        let versions = ["debug", "info"].map(|level| module.edge.patch_desired(&json!({"logLevel": level})));
        module.wait_for_applied(versions[1])?;
    }
    let times = reports(&module)?;
    let (first, last) = times.first().zip(times.last()).ok_or("nothing was reported")?;
    // One may have been longer on its way than another.
    assert!(times.len() > 4 && last - first > (times.len() - 1) as f64 - 0.5, "{times:?}");
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_report_that_would_be_too_large_is_cut_and_says_so() -> Result<(), Failure> {
    let module = Module::start("twin-large")?;
    let wanted = module.bundle(1)?;
    let long = "x".repeat(350);
    let nowhere = |number: usize| {
        let mut model = wanted.clone();
        model["source"] = format!("file:///nowhere/{long}/{number}.bundle").into();
        model["digest"] = format!("{number:064x}").into();
        (format!("{}-{number}", "m".repeat(40)), model)
    };
    let mut models: Map<String, Value> = (1..64).map(nowhere).collect();
    models.insert(MODEL.to_owned(), wanted.clone());
    module.edge.set_desired(&json!({ "models": models }));
    // All wait for their files, for which there is a long reason each.
    let reported = module.edge.wait_for_reported(|reported| {
        reported["config"]["leftOut"].is_string()
            && reported["models"].as_object().is_some_and(|models| models.len() == 64)
    })?;
    assert_eq!(reported["config"]["leftOut"], "why");
    assert_eq!(reported["models"][MODEL]["phase"], "active");
    module.edge.set_desired(&json!({"models": {MODEL: wanted}}));
    let reported = module.edge.wait_for_reported(|reported| {
        reported["models"].as_object().is_some_and(|models| models.len() == 1)
    })?;
    assert!(reported["config"]["leftOut"].is_null(), "{reported}");
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn every_bad_document_is_refused_where_the_schema_refuses_it_and_stops_nothing() -> Result<(), Failure> {
    for_each_part("bad", 6, refuses)
}

#[test]
fn every_good_document_is_taken() -> Result<(), Failure> {
    for_each_part("good", 4, takes)
}

/// Has agents judge the documents of a folder, so many each, at the same time: a report comes once in a second.
fn for_each_part(
    folder: &str,
    documents: usize,
    judge: fn(Module, &[PathBuf]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let paths = files::below(&e2e::repository().join("tests/twin").join(folder))?;
    std::thread::scope(|scope| {
        let parts = paths.chunks(documents).enumerate();
        let agents: Vec<_> = parts
            .map(|(part, paths)| {
                scope.spawn(move || judge(Module::start(&format!("twin-{folder}-{part}"))?, paths))
            })
            .collect();
        agents.into_iter().try_for_each(|agent| agent.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

fn refuses(module: Module, documents: &[PathBuf]) -> Result<(), Failure> {
    let window = data::test_split()?.remove(0);
    let sound = json!({
        "models": {MODEL: module.bundle(1)?},
        "routes": [{"input": "readings", "model": MODEL, "output": "predictions"}],
    });
    let mut sent = 0;
    for path in documents {
        module.edge.set_desired(&sound);
        // The document, with the model that runs beside those that it names.
        let mut document = read(path)?;
        match &mut document["models"] {
            Value::Object(models) => drop(models.insert(MODEL.to_owned(), sound["models"][MODEL].clone())),
            models @ Value::Null => *models = sound["models"].clone(),
            _ => {}
        }
        let config = module.wait_for_applied(module.edge.set_desired(&document))?;
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let expected = name.split('~').next().unwrap_or_default();
        assert_eq!(config["status"], "error", "{name}: {config}");
        let errors = config["errors"].as_array().cloned().unwrap_or_default();
        assert!(errors.iter().any(|error| error["path"] == *expected), "{name}: {config}");
        assert_eq!(module.client()?.predict(&window)?.0, 1, "{name}");
        if !document["routes"].is_null() {
            // The routes are as they were.
            sent += 1;
            module.send("readings", 0..1, std::slice::from_ref(&window))?;
            module.edge.wait_for_output("predictions", sent)?;
        }
    }
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

fn takes(module: Module, documents: &[PathBuf]) -> Result<(), Failure> {
    for path in documents {
        let document = with_files(&module, read(path)?)?;
        let config = module.wait_for_applied(module.edge.set_desired(&document))?;
        assert_eq!(config["status"], "ok", "{}: {config}", path.display());
    }
    module.edge.set_desired(&json!({"models": {MODEL: module.bundle(1)?}}));
    module.wait_for_active(1)?;
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

/// A document, with files that are there in place of those that it names, and a broker that nowhere is.
fn with_files(module: &Module, mut document: Value) -> Result<Value, Failure> {
    if let Some(broker) = document["registry"].get_mut("broker") {
        let scheme = broker.as_str().and_then(|broker| broker.split(':').next()).unwrap_or_default();
        *broker = format!("{scheme}://broker.invalid").into();
    }
    let password = module.directory.join("password");
    files::write(&password, "secret\n")?;
    let edge = module.directory.join("edge");
    let there = [
        ("passwordFile", password),
        ("authorities", edge.join("ca.pem")),
        ("certificate", edge.join("hub.pem")),
        ("key", edge.join("hub.key")),
    ];
    for (key, path) in there {
        if let Some(value) = document["registry"].get_mut(key) {
            *value = path.display().to_string().into();
        }
    }
    Ok(document)
}

fn read(path: &Path) -> Result<Value, Failure> {
    serde_json::from_str(&files::read(path)?).map_err(|error| format!("{}: {error}", path.display()))
}

/// When each report came, in seconds since the edge began.
fn reports(module: &Module) -> Result<Vec<f64>, Failure> {
    let log = files::read(&module.directory.join("edge/edge.log"))?;
    let reports = log.lines().filter(|line| line.contains("$iothub/twin/PATCH/properties/reported/"));
    let time = |line: &str| line.split_whitespace().next().and_then(|time| time.parse().ok());
    Ok(reports.filter_map(time).collect())
}
