//! Thousands of devices in one process, as light as the wire allows: what one registry's fleet costs, measured.
//!
//! Each is a real session of the product's own with the topics, messages and patience of an agent; what it lacks is the
//! model, the disk and the scoring.

mod device;
mod meter;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cloud_sync::bundle::Bundle;
use cloud_sync::contract::{Codec, Want};
use cloud_sync::rows::{self, Column, Row};
use serde_bytes::ByteBuf;
use serde_json::json;
use tokio::sync::watch;

use crate::client::Client;
use crate::data::{self, MODEL};
use crate::mosquitto::Mosquitto;
use crate::process::{Cloud, Failure, wait_until};
use meter::{Meter, Used};

/// Rows of a batch: a minute and a half of a device that scores each second.
const BATCH_ROWS: u64 = 100;

/// Bytes of the bundle that all pull.
const BUNDLE: usize = 4 << 20;

/// Longest that a fleet may take to come, or to be told something.
const PATIENCE: Duration = Duration::from_secs(300);

/// What all devices do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Be there, and follow what is desired.
    Idle,
    /// Send rows, the next batch when the one before has its receipt.
    Rows,
    /// Pull the bundle again and again.
    Chunks,
}

/// What all devices share: what they send, and what has happened to them.
struct Shared {
    broker: String,
    batch: (Codec, Vec<u8>),
    wants: Vec<Want>,
    phase: watch::Receiver<Phase>,
    connected: AtomicU64,
    told: AtomicU64,
    rows: AtomicU64,
    bytes: AtomicU64,
    again: AtomicU64,
}

/// What one fleet costs.
pub struct Measured {
    /// How many devices.
    pub devices: usize,
    /// From the first connect until the registry shows all of them as online.
    pub storm: Duration,
    /// From the first request to deploy until each device has its desired state.
    pub fan_out: Duration,
    /// From there until the registry shows that each follows it.
    pub followed: Duration,
    /// Rows that were receipted in a second.
    pub rows_per_second: f64,
    /// Bytes of chunks that came to devices in a second.
    pub bytes_per_second: f64,
    /// Batches and requests that were sent again, because no answer came.
    pub again: u64,
    /// Messages that the registry dropped, because its queues were full.
    pub shed: u64,
    /// Messages that its session dropped before.
    pub dropped: u64,
    /// What the registry took for the rows.
    pub registry_rows: Used,
    /// What it took for the chunks.
    pub registry_chunks: Used,
    /// The broker's memory at the end, in bytes.
    pub broker_memory: u64,
}

/// Runs a fleet of so many devices against a registry and a Mosquitto of its own, in `target/fleet/COUNT`; they send rows
/// and then pull chunks for as long as `moving`. A device that is lost on the way is a failure.
pub fn measure(devices: usize, moving: Duration) -> Result<Measured, Failure> {
    raise_descriptors(devices)?;
    let directory = crate::fresh_directory(&format!("fleet/{devices}"))?;
    let broker = Mosquitto::start(&directory.join("broker"))?;
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &["--mqtt", &broker.url])?;
    let (bundle, wants) = bundle(&directory)?;
    cloud.register(&bundle)?;
    let (to_all, phase) = watch::channel(Phase::Idle);
    let shared = Arc::new(Shared {
        broker: broker.url.clone(),
        batch: batch()?,
        wants,
        phase,
        connected: AtomicU64::new(0),
        told: AtomicU64::new(0),
        rows: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        again: AtomicU64::new(0),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("starting threads: {error}"))?;
    let client = Client::new(&cloud.http);
    let meter = Meter::new(cloud.process.id());

    let begun = Instant::now();
    for index in 0..devices {
        runtime.spawn(device::run(index, shared.clone()));
    }
    wait_for("are connected", devices, || Ok(shared.connected.load(Ordering::Relaxed) as usize))?;
    wait_for("are known to be online", devices, || count(&client, |device| device["online"] == true))?;
    let storm = begun.elapsed();

    let begun = Instant::now();
    let ids: Vec<String> = (0..devices).map(device::name).collect();
    for some in ids.chunks(1000) {
        let wish = json!({"name": MODEL, "version": 1, "devices": some});
        let answer = client.post("/api/deployments", &wish)?;
        if answer.status != 200 {
            return Err(format!("deploying: {}: {}", answer.status, answer.text));
        }
    }
    wait_for("have been told", devices, || Ok(shared.told.load(Ordering::Relaxed) as usize))?;
    let fan_out = begun.elapsed();
    let follows = |device: &serde_json::Value| device["reportedRevision"] == device["desiredRevision"];
    wait_for("are known to follow", devices, || count(&client, follows))?;
    let followed = begun.elapsed().saturating_sub(fan_out);

    let moved = |phase, counter: &AtomicU64| {
        let (before, used) = (counter.load(Ordering::Relaxed), meter.begin()?);
        to_all.send_replace(phase);
        // It is the time in which they do as much as they can.
        std::thread::sleep(moving);
        let per_second = (counter.load(Ordering::Relaxed) - before) as f64 / moving.as_secs_f64();
        let used = meter.used_since(&used)?;
        to_all.send_replace(Phase::Idle);
        Ok::<_, Failure>((per_second, used))
    };
    let (rows_per_second, registry_rows) = moved(Phase::Rows, &shared.rows)?;
    let (bytes_per_second, registry_chunks) = moved(Phase::Chunks, &shared.bytes)?;
    let measured = Measured {
        devices,
        storm,
        fan_out,
        followed,
        rows_per_second,
        bytes_per_second,
        again: shared.again.load(Ordering::Relaxed),
        shed: client.metric("edgewise_messages_shed_total")?,
        dropped: client.metric("edgewise_mqtt_dropped_messages_total")?,
        registry_rows,
        registry_chunks,
        broker_memory: Meter::new(broker.id()).memory()?,
    };
    runtime.shutdown_background();
    Ok(measured)
}

/// How many devices of the registry are as they should be.
fn count(client: &Client, is_right: impl Fn(&serde_json::Value) -> bool) -> Result<usize, Failure> {
    let (mut right, mut after) = (0, String::new());
    loop {
        let page = client.get(&format!("/api/devices?limit=1000&after={after}"))?.json();
        right += page["devices"].as_array().into_iter().flatten().filter(|device| is_right(device)).count();
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => return Ok(right),
        }
    }
}

fn wait_for(what: &str, devices: usize, now: impl Fn() -> Result<usize, Failure>) -> Result<(), Failure> {
    wait_until(PATIENCE, || match now()? {
        enough if enough >= devices => Ok(()),
        few => Err(format!("{few} of {devices} devices {what}")),
    })
}

/// A bundle to pull, and what a device asks for to have all of it.
fn bundle(directory: &Path) -> Result<(PathBuf, Vec<Want>), Failure> {
    let path = data::heavy(1, BUNDLE, &directory.join("bundle"))?;
    let bundle = Bundle::open(&path).map_err(|error| format!("reading {}: {error}", path.display()))?;
    let chunks = bundle.manifest().distinct_chunks();
    Ok((path, chunks.into_iter().map(|chunk| Want { digest: chunk.digest, offset: 0 }).collect()))
}

/// The rows that each device sends: windows of the sample's test split with a prediction.
fn batch() -> Result<(Codec, Vec<u8>), Failure> {
    let windows = data::test_split()?;
    let bytes =
        |values: &[f32]| ByteBuf::from(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
    let column = |name: &str, datatype: &str, shape: &[u64], data| Column {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.into(),
        data,
    };
    let model = MODEL.parse().map_err(|error| format!("{MODEL}: {error}"))?;
    let row = |(index, window): (u64, &data::Window)| {
        Row {
            model: Clone::clone(&model),
            version: 1,
            correlation_id: format!("{index:032x}"),
            request_id: format!("{index:016x}"),
            boot_id: "fleet".to_owned(),
            monotonic_ns: index * 1_000_000_000,
            wall_ms: 1_700_000_000_000 + index * 1000,
            wall_sure: true,
            inputs: vec![column("load", "FP32", &[window.load.len() as u64], bytes(&window.load))],
            outputs: vec![column("label", "INT64", &[], ByteBuf::from(window.label.to_le_bytes().to_vec()))],
        }
        .encode()
    };
    let encoded: Result<Vec<Vec<u8>>, _> = (0..BATCH_ROWS).zip(windows.iter().cycle()).map(row).collect();
    let packed = encoded.and_then(|rows| rows::pack(&rows));
    packed.map_err(|error| format!("packing rows: {error}"))
}

/// Has this process, and those that it starts, hold a descriptor for each device.
fn raise_descriptors(devices: usize) -> Result<(), Failure> {
    let wanted = devices as u64 + 1000;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a struct of ours that lives until the call returns.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if limit.rlim_max < wanted {
        return Err(format!(
            "{devices} devices need {wanted} file descriptors, and this session may have {}: ulimit -Hn {wanted}",
            limit.rlim_max
        ));
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    Ok(())
}
