//! The agent without a cloud: bundles served from the desk, `check`, `score` and `config`.

use std::process::Output;

use e2e::client::Client;
use e2e::data::{self, MODEL};
use e2e::files;
use e2e::process::{Agent, Cloud, Failure, run_agent};
use serde_json::{Value, json};

#[test]
fn a_bundle_is_served_in_every_form_it_has() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/local")?;
    let window = data::test_split()?.into_iter().next().ok_or("the test split is empty")?;
    let onnx = directory.join(format!("{MODEL}.onnx"));
    std::fs::copy(data::sample(Some(2)).join("model.onnx"), &onnx).map_err(|error| error.to_string())?;
    let file = directory.join(format!("{MODEL}.bundle"));
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
    cloud.register(&data::sample(Some(2)))?;
    cloud.text(&["model", "pull", &format!("{MODEL}:1"), "-o", &file.display().to_string()])?;
    let mut labels = Vec::new();
    for (name, bundle) in [("directory", data::sample(Some(2))), ("onnx", onnx), ("file", file)] {
        let mut agent = Agent::start_local(&directory.join(name), &bundle, &[])?;
        let client = Client::new(&agent.http);
        assert_eq!(client.get("/v2/health/ready")?.status, 200, "{name}");
        labels.push(client.predict(&window)?);
        assert_eq!(agent.process.terminate()?, 0, "{name}");
    }
    assert!(labels.iter().all(|label| label == &labels[0]), "{labels:?}");

    let broken = data::copy(2, &directory.join("broken"))?;
    files::write(&broken.join("golden.json"), "{}")?;
    let data = directory.join("broken-data").display().to_string();
    let broken = broken.display().to_string();
    let output = run_agent(&["run", "--local", &broken, "--data", &data, "--http", "127.0.0.1:0"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(error(&output).contains("golden"), "{}", error(&output));
    Ok(())
}

#[test]
fn check_and_score_say_what_they_find_with_their_exit_codes() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/local-check")?;
    let bundle = data::sample(Some(2)).display().to_string();
    let checked = run_agent(&["check", &bundle])?;
    assert!(checked.status.success(), "{}", error(&checked));
    let report = String::from_utf8_lossy(&checked.stdout).into_owned();
    for word in ["load", "probabilities", "tract", "P99", "MEMORY"] {
        assert!(report.contains(word), "{word} is not in the report:\n{report}");
    }

    let window = data::test_split()?.into_iter().next().ok_or("the test split is empty")?;
    let input = directory.join("input.json");
    files::write(&input, json!({"data": [window.load]}).to_string())?;
    let scored = run_agent(&["score", &bundle, "--input", &input.display().to_string()])?;
    assert!(scored.status.success(), "{}", error(&scored));
    let answer: Value = serde_json::from_slice(&scored.stdout).map_err(|error| error.to_string())?;
    let names: Vec<&str> =
        answer["outputs"].as_array().into_iter().flatten().filter_map(|o| o["name"].as_str()).collect();
    assert!(names.contains(&"label") && names.contains(&"probabilities"), "{answer}");

    files::write(&input, "{\"data\": [[1, 2]]}")?;
    for (arguments, code, says) in [
        (&["score", &bundle, "--input", &input.display().to_string()][..], 65, "24"),
        (&["score", &bundle, "--input", "/nowhere.json"], 65, "/nowhere.json"),
        (&["score", &bundle, "--input", &input.display().to_string(), "--provider", "cuda"], 65, "cuda"),
        (&["check", "/nowhere"], 65, "/nowhere"),
        (&["check", &bundle, "--provider", "abacus"], 2, "abacus"),
    ] {
        let output = run_agent(arguments)?;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", error(&output));
        assert!(error(&output).contains(says), "{arguments:?}: {}", error(&output));
    }
    Ok(())
}

#[test]
fn every_mistake_in_a_configuration_is_told_at_once() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/local-config")?;
    let file = directory.join("agent.toml");
    files::write(
        &file,
        "[http]\nlisten = \"nowhere\"\n[engine]\nthreds = 4\n[upload]\ninterval = \"soon\"\n",
    )?;
    let path = file.display().to_string();
    let output = run_agent(&["config", "--config", &path, "--provider", "abacus", "--device", "a b"])?;
    assert_eq!(output.status.code(), Some(78));
    for (key, place) in [
        ("http.listen", "agent.toml:2"),
        ("engine.threds", "agent.toml:4"),
        ("upload.interval", "agent.toml:6"),
        ("engine.provider", "flag --provider"),
        ("device", "flag --device"),
    ] {
        let told = error(&output);
        let line = told.lines().find(|line| line.contains(&format!("{place}: {key}")));
        assert!(line.is_some(), "{key} at {place} is not told:\n{told}");
    }

    files::write(&file, "[http]\nlisten = \"127.0.0.1:8123\"\n")?;
    let output = run_agent(&["config", "--config", &path, "--device", "bench", "--json"])?;
    assert!(output.status.success(), "{}", error(&output));
    let entries: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    for (key, value, from) in [
        ("http.listen", "127.0.0.1:8123", "agent.toml:2"),
        ("device", "bench", "flag --device"),
        ("engine.provider", "auto", "default"),
    ] {
        let entry = entries.as_array().into_iter().flatten().find(|entry| entry["key"] == key);
        let entry = entry.ok_or_else(|| format!("there is no {key}"))?;
        assert_eq!(entry["value"], value, "{entry}");
        assert!(entry["from"].as_str().unwrap_or_default().contains(from), "{entry}");
    }
    Ok(())
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
