//! Every row is in exactly one place, and arrives exactly once, whoever is killed meanwhile.

use std::collections::BTreeSet;
use std::ops::Range;

use e2e::data::{self, Window};
use e2e::process::Failure;
use e2e::site::{Site, adds_up};

#[test]
fn rows_survive_a_lost_broker_and_killed_programs_and_arrive_once() -> Result<(), Failure> {
    let mut site = Site::start("ledger")?;
    let windows = data::test_split()?;
    site.bring(1)?;
    score(&site, &windows, 0..200)?;
    site.flush()?;

    // Nobody takes rows: they are kept on the disk, and a kill can't take them from there.
    site.broker.kill();
    score(&site, &windows, 200..500)?;
    site.wait_for_metric("edgewise_rows_held", |held| held == 300)?;
    site.restart_agent()?;
    site.wait_for_metric("edgewise_rows_held", |held| held == 300)?;
    site.wait_for_metric("edgewise_rows_captured_total", |captured| captured == 500)?;
    score(&site, &windows, 500..700)?;

    // The cloud dies as the rows come, and is there again.
    site.broker.restart()?;
    site.wait_for_metric("edgewise_rows_uploaded_total", |uploaded| uploaded > 200)?;
    site.restart_cloud()?;
    score(&site, &windows, 700..900)?;
    site.wait_for_metric("edgewise_rows_held", |held| held == 0)?;

    // Rows that wait to go up when the agent is told to stop are there when it starts again.
    score(&site, &windows, 900..1000)?;
    assert_eq!(site.agent.process.terminate()?, 0);
    site.restart_agent()?;
    site.cloud.wait_for_phase(e2e::site::DEVICE, data::MODEL, 1, "active")?;
    let ledger = site.flush()?;
    assert!(adds_up(&ledger), "{ledger}");
    assert_eq!((&ledger["captured"], &ledger["uploaded"]), (&1000.into(), &1000.into()), "{ledger}");

    let exported = site.exported("rows")?;
    let twice: Vec<_> = exported.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "rows that are there more than once: {twice:?}");
    let expected: BTreeSet<String> = (0..1000).map(id).collect();
    let missing: Vec<_> = expected.iter().filter(|id| !exported.contains_key(*id)).collect();
    assert!(missing.is_empty(), "rows that are missing: {missing:?}");
    assert_eq!(exported.len(), 1000);
    Ok(())
}

#[test]
fn rows_that_an_earlier_process_left_wait_for_no_other() -> Result<(), Failure> {
    // Those that were left are late enough.
    let mut site = Site::start_with("left", &[("EDGEWISE_UPLOAD_INTERVAL", "1h")])?;
    site.bring(1)?;
    site.broker.kill();
    // Some batches, the last of which is not full.
    score(&site, &data::test_split()?, 0..1000)?;
    site.wait_for_metric("edgewise_rows_held", |held| held == 1000)?;
    site.restart_agent()?;
    site.broker.restart()?;
    site.wait_for_metric("edgewise_rows_held", |held| held == 0)?;
    assert_eq!(site.flush()?["uploaded"], 1000);
    Ok(())
}

fn score(site: &Site, windows: &[Window], which: Range<usize>) -> Result<(), Failure> {
    let client = site.client();
    let mut chosen = which.clone().zip(windows.iter().cycle());
    chosen.try_for_each(|(index, window)| client.predict_as(window, Some(&id(index))).map(drop))
}

fn id(index: usize) -> String {
    format!("row-{index}")
}
