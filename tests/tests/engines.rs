//! Which engine runs a model, and that it is said honestly.

use e2e::client::Client;
use e2e::data::{self, MODEL};
use e2e::process::{Agent, Failure, run_agent};

#[test]
fn the_agent_reports_what_really_runs_a_model() -> Result<(), Failure> {
    let library = e2e::onnxruntime()?.display().to_string();
    let directory = e2e::fresh_directory("e2e/engines")?;
    let bundle = data::sample(Some(2));
    for (name, more, engine, provider) in [
        ("without", &[][..], "tract", "tract"),
        ("with", &["--onnxruntime", &library], "onnxruntime", "cpu"),
        ("named", &["--onnxruntime", &library, "--provider", "tract"], "tract", "tract"),
    ] {
        let agent = Agent::start_local(&directory.join(name), &bundle, more)?;
        let metrics = Client::new(&agent.http).get("/metrics")?.text;
        let info = metrics.lines().find(|line| line.starts_with("edgewise_model_info{")).unwrap_or_default();
        let runs = info.to_lowercase().replace(' ', "");
        assert!(runs.contains(&format!("engine=\"{engine}")), "{name}: {info}");
        assert!(runs.contains(&format!("provider=\"{provider}\"")), "{name}: {info}");
        assert!(info.contains(MODEL), "{name}: {info}");
    }
    Ok(())
}

#[test]
fn a_provider_that_cannot_be_had_is_an_error_and_no_other_one() -> Result<(), Failure> {
    let library = e2e::onnxruntime()?.display().to_string();
    let data = e2e::fresh_directory("e2e/engines-refused")?.display().to_string();
    let bundle = data::sample(Some(2)).display().to_string();
    let run = ["run", "--local", &bundle, "--data", &data, "--http", "127.0.0.1:0"];
    for (more, says) in [
        (&["--provider", "cpu"][..], "ONNX Runtime"),
        (&["--provider", "cuda", "--onnxruntime", &library], "cuda"),
        (&["--onnxruntime", "/nowhere/libonnxruntime.so"], "/nowhere/libonnxruntime.so"),
    ] {
        let output = run_agent(&[&run, more].concat())?;
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{more:?}: {line}");
        assert!(line.contains(says), "{more:?}: {line}");
    }
    Ok(())
}

#[test]
fn both_engines_agree_on_the_samples() -> Result<(), Failure> {
    let library = e2e::onnxruntime()?.display().to_string();
    for version in [1, 2] {
        let bundle = data::sample(Some(version)).display().to_string();
        let output = run_agent(&["check", &bundle, "--onnxruntime", &library, "--json"])?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value =
            serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let agreements = report["agreements"].as_array().cloned().unwrap_or_default();
        assert!(!agreements.is_empty() && agreements.iter().all(|a| a["agree"] == true), "{report:#}");
    }
    Ok(())
}
