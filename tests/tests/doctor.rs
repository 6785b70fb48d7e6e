//! `edgewise-agent doctor` beside an agent that runs, and where something is wrong.

use e2e::process::{Failure, run_agent};
use e2e::site::{DEVICE, Site};
use serde_json::Value;

#[test]
fn the_doctor_describes_a_device_and_leaves_it_alone() -> Result<(), Failure> {
    let site = Site::start("doctor")?;
    site.bring(1)?;
    let data = site.directory.join("agent").display().to_string();
    let arguments = ["doctor", "--json", "--data", &data, "--device", DEVICE, "--cloud", &site.broker.url];
    let output = run_agent(&arguments)?;
    let page: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    assert_eq!((output.status.code(), &page["problems"]), (Some(0), &0.into()), "{page:#}");
    assert!(fact(&page, "storage", "agent").contains(&format!("process {}", site.agent.process.id())));
    assert!(fact(&page, "storage", "vault").starts_with(|c: char| c.is_ascii_digit() && c != '0'));
    assert!(fact(&page, "link", "signs in").starts_with("over MQTT in"));
    assert!(!fact(&page, "engines", "tract").contains("not here"));
    // The session of the agent was not touched.
    assert_eq!(site.client().metric("edgewise_link_connects_total")?, 1);
    assert_eq!(site.client().metric("edgewise_link_up")?, 1);

    // The cloud has the same facts.
    let shown = site.cloud.json(&["device", "show", DEVICE])?;
    let hardware = &shown["hardware"];
    assert_eq!(hardware["memory_bytes"], page["board"]["memory"]["total"], "{hardware}");
    assert_eq!(
        (&hardware["engines"][0]["name"], &hardware["swap_bytes"]),
        (&"tract".into(), &page["board"]["memory"]["swap"])
    );
    assert!(hardware["pressure"]["level"].is_string() && hardware["disk_bytes"].is_u64(), "{hardware}");
    Ok(())
}

#[test]
fn what_does_not_work_is_a_problem_with_its_exit_code() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/doctor-problems")?;
    let data = directory.display().to_string();
    let nobody = ["doctor", "--data", &data, "--device", DEVICE, "--cloud", "mqtt://127.0.0.1:1"];
    let output = run_agent(&nobody)?;
    let page = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{page}");
    assert!(page.contains("PROBLEM  link: mqtt://127.0.0.1:1: Connection refused"), "{page}");

    let output = run_agent(&["doctor", "--data", &data, "--device", DEVICE, "--http", "everywhere"])?;
    let page = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(78), "{page}");
    assert!(page.contains("memory") && page.contains("http.listen"), "{page}");
    Ok(())
}

fn fact(page: &Value, part: &str, name: &str) -> String {
    let parts = page["parts"].as_array().into_iter().flatten();
    let facts = parts.filter(|found| found["name"] == part).flat_map(|found| found["facts"].as_array());
    let fact = facts.flatten().find(|fact| fact["name"] == name);
    fact.and_then(|fact| fact["value"].as_str()).unwrap_or_default().to_owned()
}
