//! What an operator can have a device do, over the wire.

use e2e::data::{self, MODEL};
use e2e::process::Failure;
use e2e::site::{DEVICE, Site};
use serde_json::Value;

#[test]
fn every_command_does_what_it_says() -> Result<(), Failure> {
    let site = Site::start("commands")?;
    let window = data::test_split()?.into_iter().next().ok_or("the test split is empty")?;
    site.bring(1)?;
    site.bring(2)?;

    assert_eq!(run(&site, &["ping"])?["pong"], true);
    let state = run(&site, &["state"])?;
    assert_eq!((&state["models"][0]["active"], &state["models"][0]["previous"]), (&2.into(), &1.into()));

    let data = serde_json::to_string(&[&window.load]).map_err(|error| error.to_string())?;
    let scored = run(&site, &["score", "--arg", "model=power-demand", "--arg", &format!("data={data}")])?;
    assert_eq!(scored["outputs"]["label"][0], site.client().predict(&window)?.1, "{scored}");

    let debug = || std::fs::read_to_string(site.directory.join("agent/agent.log")).unwrap_or_default();
    assert!(!debug().contains("DEBUG"));
    run(&site, &["log-level", "--arg", "level=debug"])?;
    run(&site, &["flush"])?;
    assert!(debug().contains("DEBUG"), "the log is no more talkative than before");

    assert_eq!(run(&site, &["rollback", "--arg", "model=power-demand"])?["version"], 1);
    site.cloud.wait_for_phase(DEVICE, MODEL, 2, "rolled-back")?;
    // Version 2 serves until version 1 is loaded again.
    site.wait_for_version(1)
}

#[test]
fn what_cannot_be_done_is_said_with_an_exit_code() -> Result<(), Failure> {
    let site = Site::start("commands-refused")?;
    site.cloud.register(&data::sample(Some(1)))?;
    site.cloud.text(&["deploy", &format!("{MODEL}:1"), "--device", "away"])?;
    let known = ["ping", "state", "score", "collect", "rollback", "log-level", "flush"];
    for (arguments, code, says) in [
        (&[DEVICE, "dance"][..], 3, &known[..]),
        (&[DEVICE, "collect", "--arg", "rate=2"], 2, &["rate"]),
        (&[DEVICE, "rollback", "--arg", "model=nothing"], 4, &["nothing"]),
        (&[DEVICE, "score", "--arg", "model=nothing"], 3, &["nothing"]),
        (&[DEVICE, "log-level", "--arg", "level=loud"], 2, &["loud"]),
        (&["never-seen", "ping"], 3, &["never-seen"]),
        (&["away", "ping", "--timeout", "1s"], 5, &["away"]),
    ] {
        let arguments = [&["command"], arguments].concat();
        let output = site.cloud.edgewise(&arguments)?;
        let line = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {line}");
        assert!(says.iter().all(|word| line.contains(word)), "{arguments:?}: {line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    Ok(())
}

#[test]
fn what_is_not_collected_leaves_no_row() -> Result<(), Failure> {
    let site = Site::start("commands-collect")?;
    let windows = data::test_split()?;
    site.bring(1)?;
    let score = |prefix: &str| {
        let client = site.client();
        let mut ids = windows.iter().enumerate().map(|(index, window)| (window, format!("{prefix}-{index}")));
        ids.try_for_each(|(window, id)| client.predict_as(window, Some(&id)).map(drop))
    };
    run(&site, &["collect", "--arg", "enabled=off"])?;
    score("off")?;
    run(&site, &["collect", "--arg", "enabled=on", "--arg", "rate=0.25"])?;
    score("quarter")?;
    run(&site, &["collect", "--arg", "rate=1"])?;
    score("on")?;
    let ledger = site.flush()?;
    let exported = site.exported("rows")?;
    let of = |prefix: &str| exported.keys().filter(|id| id.starts_with(prefix)).count();
    assert_eq!((of("off"), of("quarter"), of("on")), (0, windows.len() / 4, windows.len()), "{ledger}");
    assert_eq!(ledger["captured"], exported.len());
    Ok(())
}

/// The result of a command.
fn run(site: &Site, arguments: &[&str]) -> Result<Value, Failure> {
    let reply = site.cloud.json(&[&["command", DEVICE], arguments].concat())?;
    Ok(reply["result"].clone())
}
