//! Who the module is, and what happens where nobody can or will confirm it.

use std::time::Duration;

use e2e::data;
use e2e::edge::{End, Times};
use e2e::module::Module;
use e2e::process::{Failure, Process};
use serde_json::json;

/// How long a program that can't work may take to say so.
const REFUSAL: Duration = Duration::from_secs(20);

#[test]
fn an_agent_starts_before_whoever_signs_and_before_edge_hub() -> Result<(), Failure> {
    let mut module = waiting("identity-start")?;
    module.edge.stop();
    module.edge.disturb(|faults| faults.workload_status = Some(500));
    module.run()?;
    module.wait_for_log("status 500", 1)?;
    module.edge.stop_workload();
    module.edge.disturb(|faults| faults.workload_status = None);
    module.wait_for_log("reaching the workload API", 1)?;
    module.edge.start_workload()?;
    // Now it has a token, and nobody to show it to.
    module.wait_for_log("onnection refused", 1)?;
    module.edge.start_again()?;
    answers(&mut module)
}

#[test]
fn a_signer_that_says_nothing_is_given_up_and_asked_again() -> Result<(), Failure> {
    let mut module = waiting("identity-silent")?;
    module.edge.disturb(|faults| faults.workload_hangs = true);
    module.run()?;
    module.wait_for_log("no answer within 10s", 1)?;
    module.edge.disturb(|faults| faults.workload_hangs = false);
    answers(&mut module)
}

#[test]
fn who_is_not_let_in_signs_again_and_again_with_growing_pauses() -> Result<(), Failure> {
    let mut module = waiting("identity-refused")?;
    module.edge.disturb(|faults| faults.connack = Some(5));
    module.run()?;
    let refused = |count: usize| {
        module.edge.wait_for_connections(|connects| {
            connects.iter().filter(|connect| connect.code == 5).count() >= count
        })
    };
    let connects = refused(3)?;
    assert!(module.edge.workload_calls("sign") >= 3, "a token that was refused is shown again");
    let mut passwords: Vec<&String> = connects.iter().map(|connect| &connect.password).collect();
    passwords.dedup();
    assert_eq!(passwords.len(), connects.len());
    module.wait_for_log("retry_in=", 3)?;
    let pauses = pauses(&module.log());
    // Each is drawn from 1 s to a bound that doubles.
    let bounds = [4.0, 8.0, 16.0];
    assert!(pauses.iter().zip(bounds).all(|(pause, bound)| (1.0..=bound).contains(pause)), "{pauses:?}");
    module.edge.disturb(|faults| faults.connack = None);
    answers(&mut module)
}

#[test]
fn an_imposter_is_told_nothing() -> Result<(), Failure> {
    let mut module = waiting("identity-imposter")?;
    module.edge.stop();
    module.edge.start_imposter()?;
    module.run()?;
    module.wait_for_log("retry_in=", 1)?;
    assert!(module.edge.connects().is_empty() && module.edge.failed_handshakes() > 0);
    module.edge.stop();
    module.edge.start_again()?;
    answers(&mut module)
}

#[test]
fn a_token_is_renewed_before_its_end_without_losing_a_message() -> Result<(), Failure> {
    // A connection is closed as soon as its token is over.
    let times = Times {
        clock_skew: Duration::ZERO,
        reauthentication: Duration::from_millis(200),
        ..Times::default()
    };
    let mut module = Module::new("identity-renewed", times)?;
    module.set("EDGEWISE_MODULE_TOKEN_LIFETIME", "10s");
    let desired = json!({"models": {data::MODEL: module.bundle(1)?}});
    module.edge.set_desired(&desired);
    module.run()?;
    let windows = data::test_split()?;
    let mut sent = 0;
    while module.edge.connects().len() < 3 {
        module.send("amlInput", sent..sent + 5, &windows)?;
        sent += 5;
        module.edge.wait_for_inputs()?;
        // The pace of a sensor.
        std::thread::sleep(Duration::from_millis(50));
    }
    module.all_answered("amlOutput", sent)?;
    let mut connects = module.edge.connects();
    assert!(connects.pop().is_some_and(|last| last.end.is_none()));
    assert!(connects.iter().all(|connect| connect.end == Some(End::Disconnected)), "{connects:?}");
    assert_eq!(module.edge.workload_calls("sign"), connects.len() as u64 + 1);
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_developer_needs_no_security_daemon() -> Result<(), Failure> {
    let mut module = waiting("identity-development")?;
    module.environment = module.edge.development_environment();
    module.run()?;
    answers(&mut module)?;
    assert_eq!(module.edge.workload_calls("sign"), 0);
    Ok(())
}

#[test]
fn an_environment_that_makes_no_module_is_refused_by_the_names_that_are_missing() -> Result<(), Failure> {
    let module = waiting("identity-incomplete")?;
    let missing = ["IOTEDGE_WORKLOADURI", "IOTEDGE_DEVICEID"];
    let environment: Vec<(&str, &str)> = module
        .environment
        .iter()
        .filter(|(name, _)| !missing.contains(name))
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let data = module.directory.join("agent").display().to_string();
    let log = module.directory.join("refused.log");
    let mut agent = Process::start("edgewise-agent", ["run", "--data", &data], &environment, &log)?;
    assert_eq!(agent.wait(REFUSAL), Some(78));
    let said = e2e::files::read(&log)?;
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(missing.iter().all(|name| said.contains(&format!("{name} is missing"))), "{said}");
    assert!(!said.contains("IOTEDGE_MODULEID"), "{said}");
    Ok(())
}

/// An edge device that wants version 1, and on which the agent does not run yet.
fn waiting(name: &str) -> Result<Module, Failure> {
    let module = Module::new(name, Times::default())?;
    module.edge.set_desired(&json!({"models": {data::MODEL: module.bundle(1)?}}));
    Ok(module)
}

/// Waits until the module serves and answers; all that came before was its right.
fn answers(module: &mut Module) -> Result<(), Failure> {
    module.wait_for_active(1)?;
    module.send("amlInput", 0..3, &data::test_split()?)?;
    module.all_answered("amlOutput", 3)?;
    assert!(module.is_running());
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

/// The pauses between attempts to connect that are in a log, in seconds.
fn pauses(log: &str) -> Vec<f64> {
    let text = |rest: &str| rest.split_whitespace().next().unwrap_or_default().to_owned();
    let seconds = |text: String| {
        let milliseconds = text.strip_suffix("ms").and_then(|number| number.parse::<f64>().ok());
        let seconds = || text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
        milliseconds.map(|number| number / 1000.0).or_else(seconds)
    };
    log.split("retry_in=").skip(1).filter_map(|rest| seconds(text(rest))).collect()
}
