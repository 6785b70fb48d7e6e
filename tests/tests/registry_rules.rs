//! The registry's rules: numbers, labels, what may be deleted, and bundles that come back as they went.

use e2e::client::Client;
use e2e::data::{self, MODEL};
use e2e::process::{Cloud, Failure, run_agent};
use e2e::site::{DEVICE, Site};
use serde_json::{Value, json};

#[test]
fn the_same_bytes_are_a_new_version_that_costs_nothing() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/registry-bytes")?;
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
    let register = |path: &str| cloud.json(&["model", "register", path, "--name", MODEL]);
    let sample = data::sample(Some(1)).display().to_string();
    let first = register(&sample)?;
    assert!(first["newBytes"].as_u64() > Some(0), "{first}");
    let second = register(&sample)?;
    assert_eq!((&second["version"], &second["newBytes"]), (&2.into(), &0.into()), "{second}");
    assert_eq!(second["digest"], first["digest"]);

    // In either form it comes back as it went, and the agent takes both.
    let (file, folder) = (directory.join("pulled.bundle"), directory.join("pulled"));
    for (version, path) in [(3, file.display().to_string()), (4, folder.display().to_string())] {
        cloud.text(&["model", "pull", &format!("{MODEL}:1"), "-o", &path])?;
        let again = register(&path)?;
        assert_eq!(again["version"], version);
        assert_eq!((&again["digest"], &again["newBytes"]), (&first["digest"], &0.into()), "{again}");
        let checked = run_agent(&["check", &path, "--provider", "tract", "--json"])?;
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }

    cloud.text(&["model", "delete", &format!("{MODEL}:4")])?;
    assert_eq!(register(&sample)?["version"], 5, "the number of a deleted version was given again");
    Ok(())
}

#[test]
fn tags_are_replaced_properties_stay_and_lists_filter_by_both() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/registry-labels")?;
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
    let sample = data::sample(Some(1)).display().to_string();
    for (name, stage) in [("load", "test"), ("load", "field"), ("other", "test")] {
        let (tag, property) = (format!("stage={stage}"), format!("commit={name}-{stage}"));
        cloud.text(&[
            "model",
            "register",
            &sample,
            "--name",
            name,
            "--tag",
            &tag,
            "--property",
            &property,
        ])?;
    }
    cloud.text(&["model", "tag", "load:1", "stage=old", "seen=yes"])?;
    let list = |arguments: &[&str]| -> Result<Vec<String>, Failure> {
        let models = cloud.json(&[&["model", "list"], arguments].concat())?;
        let ids = models.as_array().into_iter().flatten().filter_map(|model| model["id"].as_str());
        Ok(ids.map(str::to_owned).collect())
    };
    assert_eq!(list(&[])?, ["load:1", "load:2", "other:1"]);
    assert_eq!(list(&["--name", "load"])?, ["load:1", "load:2"]);
    assert_eq!(list(&["--latest"])?, ["load:2", "other:1"]);
    assert_eq!(list(&["--tag", "stage"])?, ["load:1", "load:2", "other:1"]);
    assert_eq!(list(&["--tag", "stage=old"])?, ["load:1"]);
    assert_eq!(list(&["--tag", "stage", "--tag", "seen=yes"])?, ["load:1"]);
    assert_eq!(list(&["--property", "commit=load-field"])?, ["load:2"]);
    assert_eq!(list(&["--tag", "stage=test", "--latest"])?, ["other:1"]);

    let api = Client::new(&cloud.http);
    let change = |properties: Value| {
        let body = json!({ "properties": properties }).to_string();
        let headers = [("content-type", "application/json")];
        api.send("PATCH", "/api/models/load/versions/1", &headers, body.as_bytes())
    };
    assert_eq!(change(json!({"commit": "load-test", "run": "7"}))?.status, 200);
    let refused = change(json!({"commit": "another"}))?;
    assert_eq!((refused.status, refused.header("content-type")), (409, "application/problem+json"));
    assert!(refused.json()["detail"].as_str().unwrap_or_default().contains("commit"), "{}", refused.text);
    let record = cloud.json(&["model", "show", "load:1"])?;
    assert_eq!(record["properties"], json!({"commit": "load-test", "run": "7"}));
    Ok(())
}

#[test]
fn what_a_device_needs_is_not_deleted() -> Result<(), Failure> {
    let site = Site::start("registry-delete")?;
    site.bring(1)?;
    site.bring(2)?;
    assert_eq!(site.cloud.register(&data::sample(Some(1)))?, 3);
    site.cloud.text(&["deploy", &format!("{MODEL}:3"), "--device", "never-seen"])?;
    let api = Client::new(&site.cloud.http);
    for (version, device, why) in
        [(1, DEVICE, "previous"), (2, DEVICE, "active"), (3, "never-seen", "desired")]
    {
        let id = format!("{MODEL}:{version}");
        let output = site.cloud.edgewise(&["model", "delete", &id])?;
        let line = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        assert_eq!(output.status.code(), Some(4), "{id}: {line}");
        assert!(line.contains(device), "{id}: the holder is not named: {line}");
        let answer = api.send("DELETE", &format!("/api/models/{MODEL}/versions/{version}"), &[], &[])?;
        let problem = answer.json();
        assert_eq!((answer.status, &problem["code"]), (412, &"DeletionRequired".into()), "{problem}");
        let holders = problem["holders"].as_array().cloned().unwrap_or_default();
        assert!(holders.contains(&json!({"device": device, "why": why})), "{id}: {problem}");
    }
    site.cloud.text(&["undeploy", MODEL, "--device", "never-seen"])?;
    site.cloud.text(&["model", "delete", &format!("{MODEL}:3")])?;
    let gone = site.cloud.edgewise(&["model", "show", &format!("{MODEL}:3")])?;
    assert_eq!(gone.status.code(), Some(3));
    Ok(())
}
