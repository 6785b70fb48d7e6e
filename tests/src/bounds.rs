//! What must never grow: the spool and the vault on the disk, looked at all the while as the disk counts them.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Client;
use crate::data::{self, MODEL};
use crate::files;
use crate::process::{Failure, wait_until};
use crate::site::{DEVICE, PATIENCE, Site, adds_up};

/// The least bounds that the agent takes.
pub(crate) const SPOOL_BYTES: u64 = 8 << 20;
/// See [`SPOOL_BYTES`].
const VAULT_BYTES: u64 = 16 << 20;

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The model whose rows come faster than any link: its output is its input, one number a row.
pub(crate) const FAST: &str = "burst";

/// Rows of one request to it.
const BURST: usize = 3000;

/// Rows that the full spool has to give up before the link comes back.
const GIVEN_UP: u64 = 60_000;

/// Bytes of an asset of which three versions fit into the vault, and of one that does not fit with two of those.
const FITS: usize = 4_000_000;
/// See [`FITS`].
const TOO_MUCH: usize = 9_000_000;

/// Looks at a directory all the while.
pub struct Gauge {
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Gauge {
    /// Begins.
    pub fn start(directory: &Path) -> Self {
        let (most, stop) = <(Arc<AtomicU64>, Arc<AtomicBool>)>::default();
        let (directory, seen, ended) = (directory.to_owned(), most.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                seen.fetch_max(on_disk(&directory), Ordering::Relaxed);
                std::thread::sleep(LOOK);
            }
        });
        Self { most, stop, thread }
    }

    /// Ends, and gives the most bytes of disk that the directory took.
    pub fn most(self) -> Result<u64, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "a gauge's thread panicked".to_owned())?;
        Ok(self.most.load(Ordering::Relaxed))
    }
}

/// A long outage, a burst that the spool can't hold and kills in it, then more bursts while the rest goes up: the spool
/// stays within its bound, and each row is accounted for.
pub fn spool() -> Result<String, Failure> {
    let mut site = Site::start_with("bounds-spool", &[("EDGEWISE_SPOOL_MAX_BYTES", "8 MiB")])?;
    let model = fast_model().display().to_string();
    site.cloud.text(&["model", "register", &model, "--name", FAST])?;
    site.cloud.text(&["deploy", &format!("{FAST}:1"), "--device", DEVICE])?;
    site.cloud.wait_for_phase(DEVICE, FAST, 1, "active")?;
    let gauge = Gauge::start(&site.directory.join("agent/spool"));
    let mut burst = Burst::default();
    site.broker.kill();
    for part in 1..=3 {
        let client = site.client();
        while client.metric("edgewise_rows_dropped_total").unwrap_or(0) < GIVEN_UP * part / 3 {
            burst.send(&client)?;
        }
        site.restart_agent()?;
    }
    site.broker.restart()?;
    site.restart_cloud()?;
    let uploaded = |site: &Site| site.client().metric("edgewise_rows_uploaded_total");
    let begun = Instant::now();
    while uploaded(&site)? < 2 * BURST as u64 {
        burst.send(&site.client())?;
        if begun.elapsed() > PATIENCE {
            return Err("rows do not go up beside the burst".to_owned());
        }
    }
    let ledger = wait_until(PATIENCE, || site.flush())?;
    let most = gauge.most()?;
    within("the spool", most, SPOOL_BYTES)?;
    if !adds_up(&ledger) || ledger["lost"] != 0 {
        return Err(format!("the ledger does not add up: {ledger}"));
    }
    let exported = numbers(&site)?;
    let distinct: BTreeSet<u64> = exported.iter().copied().collect();
    if ledger["uploaded"] != exported.len() as u64 || distinct.len() != exported.len() {
        return Err(format!(
            "{} rows are exported, {} of them other: {ledger}",
            exported.len(),
            distinct.len()
        ));
    }
    Ok(format!("spool: at most {most} of {SPOOL_BYTES} bytes of disk; {} rows sent, {ledger}", burst.sent))
}

/// One version after the other, and one that does not fit: the vault stays within its budget.
pub fn vault(versions: u64) -> Result<String, Failure> {
    let site = Site::start_with("bounds-vault", &[("EDGEWISE_VAULT_MAX_BYTES", "16 MiB")])?;
    let gauge = Gauge::start(&site.directory.join("agent/vault"));
    let place = site.directory.join("bundle");
    for version in 1..=versions {
        site.cloud.register(&data::noisy(1 + version % 2, version, FITS, &place)?)?;
        site.deploy(version)?;
    }
    let last = versions + 1;
    site.cloud.register(&data::noisy(1, last, TOO_MUCH, &place)?)?;
    site.cloud.text(&["deploy", &format!("{MODEL}:{last}"), "--device", DEVICE])?;
    wait_until(PATIENCE, || {
        let known = site.cloud.model_on(DEVICE, MODEL)?;
        let why = known["why"].as_str().unwrap_or_default();
        let is_told = known["version"] == last && why.contains("vault.max_bytes");
        if is_told { Ok(()) } else { Err(format!("not told that version {last} does not fit: {known}")) }
    })?;
    site.wait_for_version(versions)?;
    let most = gauge.most()?;
    within("the vault", most, VAULT_BYTES)?;
    Ok(format!("vault: at most {most} of {VAULT_BYTES} bytes of disk over {versions} versions"))
}

/// The file of [`FAST`].
pub(crate) fn fast_model() -> PathBuf {
    crate::target_root().join("test-models/types/identity_f32.onnx")
}

/// Rows whose number is each time another.
#[derive(Default)]
pub(crate) struct Burst {
    sent: usize,
}

impl Burst {
    /// Sends one more, and waits until its rows have come to the spool: in the queue before it they are nowhere yet.
    pub(crate) fn send(&mut self, client: &Client) -> Result<(), Failure> {
        let numbers: Vec<usize> = (self.sent..self.sent + BURST).collect();
        let body = json!({"inputs": [{"name": "x", "shape": [BURST], "datatype": "FP32", "data": numbers}]});
        let captured = || client.metric("edgewise_rows_captured_total");
        let before = captured()?;
        let answer = client.post(&format!("/v2/models/{FAST}/infer"), &body)?;
        if answer.status != 200 {
            return Err(format!("{}: {}", answer.status, answer.text));
        }
        self.sent += BURST;
        wait_until(PATIENCE, || match captured()? - before {
            rows if rows >= BURST as u64 => Ok(()),
            rows => Err(format!("{rows} of {BURST} rows were captured")),
        })
    }
}

/// The numbers of all rows that the cloud exports.
fn numbers(site: &Site) -> Result<Vec<u64>, Failure> {
    let output = site.directory.join("rows");
    let path = output.display().to_string();
    site.cloud.text(&["data", "export", "--model", FAST, "--format", "jsonl", "-o", &path])?;
    let mut numbers = Vec::new();
    for file in files::below(&output)? {
        for line in files::read(&file)?.lines() {
            let row: Value = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
            let number =
                row["inputs"]["x"].as_f64().ok_or_else(|| format!("a row without a number: {line}"))?;
            numbers.push(number as u64);
        }
    }
    Ok(numbers)
}

fn within(what: &str, most: u64, bound: u64) -> Result<(), Failure> {
    // A bound that was never come near says nothing.
    if most > bound {
        Err(format!("{what} took {most} bytes of disk, its bound is {bound}"))
    } else if most < bound / 2 {
        Err(format!("{what} took only {most} bytes of disk of {bound}"))
    } else {
        Ok(())
    }
}

/// Bytes of disk of all below a directory; what goes away meanwhile counts nothing.
fn on_disk(path: &Path) -> u64 {
    let own = std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512);
    let below = std::fs::read_dir(path).into_iter().flatten().flatten();
    own + below.map(|entry| on_disk(&entry.path())).sum::<u64>()
}
