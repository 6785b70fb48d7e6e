//! The whole journey on Mosquitto: register, deploy, pull, prove, score, swap, capture, upload, export.

use std::collections::BTreeSet;

use e2e::data::{self, MODEL};
use e2e::flow::Background;
use e2e::process::{Failure, wait_until};
use e2e::site::{DEVICE, PATIENCE, Site, adds_up};
use e2e::{files, python};

/// Windows that are scored one by one, each under an id.
const WINDOWS: usize = 100;

#[test]
fn a_model_goes_to_the_device_and_its_rows_come_back() -> Result<(), Failure> {
    let site = Site::start("journey")?;
    let windows = data::test_split()?;
    let bundle = data::sample(Some(1)).display().to_string();
    let registered = site.cloud.text(&["model", "register", &bundle, "--name", MODEL, "--tag", "a=b"])?;
    assert!(registered.starts_with(&format!("{MODEL}:1 ")), "{registered}");

    site.deploy(1)?;
    let transfer = site.cloud.model_on(DEVICE, MODEL)?["transfer"].clone();
    assert!(transfer["fetched_bytes"].as_u64() > Some(0), "nothing came over the wire: {transfer}");
    let mut ids = BTreeSet::new();
    let mut right = 0;
    for (index, window) in windows.iter().take(WINDOWS).enumerate() {
        let id = format!("window-{index}");
        let (version, label) = site.client().predict_as(window, Some(&id))?;
        assert_eq!(version, 1);
        right += usize::from(label == window.label);
        ids.insert(id);
    }
    // The accuracy that the sample's README states is well above a coin's.
    assert!(right > WINDOWS * 7 / 10, "only {right} of {WINDOWS} are right");

    let flow = Background::start(&site.agent.http, &windows);
    flow.wait_for(1, 50)?;
    site.bring(2)?;
    flow.wait_for(2, 50)?;
    let flowed = flow.stop()?;
    assert_eq!(flowed.failed, 0, "requests failed during the swap: {}", flowed.why);
    let transfer = wait_until(PATIENCE, || {
        let transfer = site.cloud.model_on(DEVICE, MODEL)?["transfer"].clone();
        if transfer["swap_us"].as_u64() > Some(0) { Ok(transfer) } else { Err(format!("{transfer}")) }
    })?;
    assert!(transfer["shared_bytes"].as_u64() > Some(0), "version 2 shared nothing: {transfer}");

    let ledger = site.flush()?;
    assert!(adds_up(&ledger), "{ledger}");
    let scored = WINDOWS as u64 + flowed.total();
    assert_eq!((&ledger["captured"], &ledger["uploaded"]), (&scored.into(), &scored.into()), "{ledger}");

    let exported = site.exported("jsonl")?;
    assert_eq!(exported.values().sum::<u64>(), scored);
    assert!(ids.iter().all(|id| exported.get(id) == Some(&1)), "a row is missing or there twice");
    check_csv(&site, scored)?;
    let parquet = site.directory.join("parquet").display().to_string();
    site.cloud.text(&["data", "export", "--model", MODEL, "--format", "parquet", "-o", &parquet])?;
    python::run("parquet.py", &[&parquet, &scored.to_string()]).map(drop)
}

/// Azure ML's layout and columns, with as many rows as were scored.
fn check_csv(site: &Site, scored: u64) -> Result<(), Failure> {
    let output = site.directory.join("csv");
    let path = output.display().to_string();
    site.cloud.text(&["data", "export", "--model", MODEL, "--format", "csv", "-o", &path])?;
    for (designation, first) in [("inputs", "load_0"), ("predictions", "label")] {
        let mut rows = 0;
        for file in files::below(&output)?.iter().filter(|file| file.ends_with(format!("{designation}.csv")))
        {
            let path = file.display().to_string();
            let known = format!("/modeldata/edgewise/edge/default/{DEVICE}/{MODEL}/");
            assert!(path.contains(&known) && path.contains(&format!("/{designation}/")), "{path}");
            let text = files::read(file)?;
            let columns: Vec<&str> = text.lines().next().unwrap_or_default().split(',').collect();
            assert_eq!(columns.first(), Some(&first), "{columns:?}");
            let last: Vec<&str> = columns.iter().rev().take(8).rev().copied().collect();
            assert_eq!(
                last.join(","),
                "$aml_dc_correlation_id,$aml_dc_scoring_timestamp,$aml_dc_boundary,$aml_workspace,\
                 $aml_service_name,$aml_model_name,$aml_model_version,$aml_request_id"
            );
            rows += text.lines().skip(1).count() as u64;
        }
        assert_eq!(rows, scored, "{designation}");
    }
    Ok(())
}
