//! Nothing grows beyond its bound: disk, memory, and what a full disk does. `tests/run soak` is the long form.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::data::{self, MODEL};
use e2e::flow::Background;
use e2e::process::{Failure, wait_until};
use e2e::site::{DEVICE, PATIENCE, Site, adds_up};
use e2e::{bounds, soak};

/// Bytes of the disk that is filled: the least spool and little more.
const DISK: &str = "24m";

/// Bytes of an asset for which a full disk has no room.
const HEAVY: usize = 8 << 20;

#[test]
fn the_spool_stays_within_its_bound_through_an_outage_a_burst_and_kills() -> Result<(), Failure> {
    bounds::spool().map(|told| println!("{told}"))
}

#[test]
fn the_vault_stays_within_its_budget_over_many_versions() -> Result<(), Failure> {
    bounds::vault(6).map(|told| println!("{told}"))
}

#[test]
fn memory_stays_flat_over_scores() -> Result<(), Failure> {
    soak::scores(3000, "tract").map(|told| println!("{told}"))
}

#[test]
fn memory_stays_flat_over_swaps() -> Result<(), Failure> {
    soak::swaps(25, "tract").map(|told| println!("{told}"))
}

#[test]
fn memory_comes_back_after_a_load_with_a_full_spool() -> Result<(), Failure> {
    soak::outbox(Duration::from_secs(3), "tract").map(|told| println!("{told}"))
}

#[test]
fn a_full_disk_stops_capture_and_deploys_and_nothing_else_and_passes() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/bounds-disk")?;
    let Some(disk) = Disk::mount(&directory.join("agent"))? else {
        println!("a file system to fill needs root: not checked here");
        return Ok(());
    };
    let mut site = Site::start_in(directory, &[])?;
    let windows = data::test_split()?;
    site.bring(1)?;
    let flow = Background::start(&site.agent.http, &windows);
    flow.wait_for(1, 100)?;
    site.broker.kill();
    disk.fill()?;
    site.wait_for_metric("edgewise_rows_dropped_total", |dropped| dropped > 0)?;
    let flowed = flow.stop()?;
    assert_eq!(flowed.failed, 0, "{}", flowed.why);

    // It starts where there is no room at all, serves, and what it holds goes up and makes room.
    disk.fill()?;
    site.restart_agent()?;
    site.client().predict(&windows[0])?;
    let held = site.client().metric("edgewise_rows_held")?;
    assert!(held > 0, "no row is held on the full disk");
    site.broker.restart()?;
    site.restart_cloud()?;
    site.wait_for_metric("edgewise_rows_held", |held| held == 0)?;

    let flow = Background::start(&site.agent.http, &windows);
    disk.fill()?;
    site.cloud.register(&data::heavy(2, HEAVY, &site.directory.join("bundle"))?)?;
    site.cloud.text(&["deploy", &format!("{MODEL}:2"), "--device", DEVICE])?;
    wait_until(PATIENCE, || {
        let known = site.cloud.model_on(DEVICE, MODEL)?;
        let why = known["why"].as_str().unwrap_or_default();
        if why.contains("No space left") {
            Ok(())
        } else {
            Err(format!("not told of the full disk: {known}"))
        }
    })?;
    disk.empty()?;
    site.cloud.wait_for_phase(DEVICE, MODEL, 2, "active")?;
    flow.wait_for(2, 100)?;
    let flowed = flow.stop()?;
    assert_eq!(flowed.failed, 0, "{}", flowed.why);

    let ledger = site.flush()?;
    assert!(adds_up(&ledger) && ledger["lost"] == 0, "{ledger}");
    let exported = site.exported("rows")?;
    assert!(exported.values().all(|times| *times == 1), "a row came twice");
    assert_eq!(ledger["uploaded"], exported.len() as u64, "{ledger}");
    println!("{ledger}");
    Ok(())
}

/// A small file system of its own, gone when dropped.
struct Disk {
    place: PathBuf,
}

impl Disk {
    /// `None` where this process may not make one.
    fn mount(place: &Path) -> Result<Option<Self>, Failure> {
        std::fs::create_dir_all(place).map_err(|error| format!("making {}: {error}", place.display()))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={DISK}"), "none"]).arg(place);
        let done = mount.output().map_err(|error| format!("running mount: {error}"))?;
        Ok(done.status.success().then(|| Self { place: place.to_owned() }))
    }

    fn filler(&self) -> PathBuf {
        self.place.join("filler")
    }

    /// Leaves no room.
    fn fill(&self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| format!("filling {}: {error}", self.place.display());
        let mut filler = File::options().create(true).append(true).open(self.filler()).map_err(failed)?;
        let block = [1; 512];
        while let Ok(1..) = filler.write(&block) {}
        Ok(())
    }

    fn empty(&self) -> Result<(), Failure> {
        std::fs::remove_file(self.filler()).map_err(|error| format!("emptying the disk: {error}"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, for the agent may still be on it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.place).status();
    }
}
