//! What is said to be durable was synced before it was said, by what strace sees of the agent and the cloud; and what the
//! checks are worth: the same traces without a kind of sync do not pass them.

use std::ops::Range;
use std::path::Path;

use e2e::client::Client;
use e2e::data::{self, MODEL};
use e2e::mosquitto::Mosquitto;
use e2e::process::{Agent, Cloud, Failure, Process, wait_until};
use e2e::site::{DEVICE, PATIENCE};
use e2e::trace::{Moment, Trace};

/// Rows that are scored in each life of the agent.
const ROWS: usize = 40;

/// Bytes of an asset, some dozens of blocks of a disk.
const NOISE: usize = 200_000;

/// What `/metrics` calls the rows that the agent has taken.
const COUNTED: &str = "edgewise_rows_captured_total";
/// What it calls those that have a receipt.
const UPLOADED: &str = "edgewise_rows_uploaded_total";

#[test]
fn what_is_said_to_be_durable_was_synced_before() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/durable")?;
    let Lives { agent: [killed, found, last], cloud: [killed_cloud, found_cloud] } = lives(&directory)?;

    let root = directory.join("agent");
    let to_the_find = killed.followed_by(found);
    let check: (&str, Check, &[&str]) =
        ("a segment that a kill left", found_segment, &["fsync", "fdatasync"]);
    hold(&[check], &to_the_find, &root)?;
    let checks: [(&str, Check, &[&str]); 4] = [
        ("a counted row", counted_rows, &["fdatasync"]),
        ("a row that is deleted after its receipt", receipts, &["fdatasync"]),
        ("a phase that is reported", phases, &["fsync"]),
        ("a bundle that is being proved", verified_bundles, &["syncfs"]),
    ];
    hold(&checks, &to_the_find.followed_by(last), &root)?;
    let root = directory.join("cloud");
    let check: (&str, Check, &[&str]) =
        ("a log that a kill left", found_log, &["fsync", "fdatasync", "syncfs"]);
    hold(&[check], &found_cloud, &root)?;
    let checks: [(&str, Check, &[&str]); 2] = [
        ("rows with a receipt", sent_receipts, &["fsync", "fdatasync"]),
        ("a version with a number", registered, &["fsync", "fdatasync"]),
    ];
    hold(&checks, &killed_cloud.followed_by(found_cloud), &root)
}

/// Where files can't have holes, the chunks that stay are moved when others of their pack go.
#[test]
fn what_is_moved_within_the_vault_is_synced_before_the_old_goes() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/durable_moves")?;
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
    let trace = directory.join("agent.trace");
    let mut agent = start_agent(&directory, &cloud.mqtt, &trace, &["fallocate"])?;
    // One version before is kept to fall back to, so the third lets the first go.
    for version in 1..=3 {
        cloud.register(&data::noisy(1, version, NOISE, &directory.join(format!("bundle-{version}")))?)?;
        cloud.text(&["deploy", &format!("{MODEL}:{version}"), "--device", DEVICE])?;
        cloud.wait_for_phase(DEVICE, MODEL, version, "active")?;
    }
    let root = directory.join("agent");
    let old = root.join("vault/chunks/0000000000.chunks");
    wait_until(PATIENCE, || if old.exists() { Err("the first pack stays".to_owned()) } else { Ok(()) })?;
    let process = agent.process.id();
    assert_eq!(agent.process.terminate()?, 0, "the agent's end");
    let trace = Trace::read(&trace, process)?;
    let checks: [(&str, Check, &[&str]); 2] = [
        ("bytes that are moved before they are named", moved_chunks, &["fsync"]),
        ("names of what is moved before the old go", moved_chunks, &["syncfs"]),
    ];
    hold(&checks, &trace, &root)?;
    // What it serves now can only come from where it was moved to.
    drop(cloud);
    let agent = start_agent(&directory, "mqtt://127.0.0.1:9", &directory.join("agent-2.trace"), &[])?;
    let window = data::test_split()?.into_iter().next().ok_or("the test split is empty")?;
    assert_eq!(Client::new(&agent.http).predict(&window)?.0, 3);
    Ok(())
}

/// Gives how many things it has found to be durable in the data directory's trace.
type Check = fn(&Trace, &Path) -> Result<usize, Failure>;

/// Each check passes, and would not if a program made none of these syncs.
fn hold(checks: &[(&str, Check, &[&str])], trace: &Trace, root: &Path) -> Result<(), Failure> {
    for (what, check, syncs) in checks {
        let found = check(trace, root).map_err(|why| format!("{what}: {why}"))?;
        assert!(found > 0, "{what}: there is none");
        assert!(check(&trace.without(syncs), root).is_err(), "{what}: nobody misses {syncs:?}");
        println!("{what}: {found} were durable when that was said");
    }
    Ok(())
}

/// What a site's programs asked of the system, a trace for each of their lives. The first of each ends by kill -9.
struct Lives {
    agent: [Trace; 3],
    cloud: [Trace; 2],
}

/// A site's journey: a model is registered and deployed, rows are captured while the cloud stands still, by an agent
/// that is killed and by one that is told to end; the cloud is killed; rows are uploaded and more are captured.
fn lives(directory: &Path) -> Result<Lives, Failure> {
    let broker = Mosquitto::start(&directory.join("broker"))?;
    let path = |name: &str| directory.join(format!("{name}.trace"));
    let mut cloud = start_cloud(directory, &broker.url, &path("cloud-1"))?;
    let mut agent = start_agent(directory, &broker.url, &path("agent-1"), &[])?;
    cloud.register(&data::sample(Some(1)))?;
    cloud.text(&["deploy", &format!("{MODEL}:1"), "--device", DEVICE])?;
    cloud.wait_for_phase(DEVICE, MODEL, 1, "active")?;
    score(&agent, 0..1)?;
    wait_for_metric(&agent, UPLOADED, 1)?;

    // Nobody takes rows, and nobody loses a connection.
    cloud.process.signal(libc::SIGSTOP);
    score(&agent, 1..ROWS)?;
    let first = agent.process.id();
    agent.process.kill();
    agent = start_agent(directory, &broker.url, &path("agent-2"), &[])?;
    score(&agent, ROWS..2 * ROWS)?;
    let second = agent.process.id();
    assert_eq!(agent.process.terminate()?, 0, "the agent's end");

    let registry = cloud.process.id();
    cloud.process.kill();
    cloud = start_cloud(directory, &broker.url, &path("cloud-2"))?;
    agent = start_agent(directory, &broker.url, &path("agent-3"), &[])?;
    wait_for_metric(&agent, UPLOADED, 2 * ROWS)?;
    score(&agent, 2 * ROWS..3 * ROWS)?;
    wait_for_metric(&agent, UPLOADED, 3 * ROWS)?;
    let (third, last_registry) = (agent.process.id(), cloud.process.id());
    assert_eq!(agent.process.terminate()?, 0, "the agent's last end");
    assert_eq!(cloud.process.terminate()?, 0, "the cloud's end");

    let read = |name: &str, process: u32| Trace::read(&path(name), process);
    Ok(Lives {
        agent: [read("agent-1", first)?, read("agent-2", second)?, read("agent-3", third)?],
        cloud: [read("cloud-1", registry)?, read("cloud-2", last_registry)?],
    })
}

fn start_cloud(directory: &Path, broker: &str, trace: &Path) -> Result<Cloud, Failure> {
    let data = directory.join("cloud").display().to_string();
    let arguments = ["serve", "--data", &data, "--http", "127.0.0.1:0", "--mqtt", broker];
    Cloud::ready(Process::start_traced("edgewise", arguments, &[], &directory.join("cloud.log"), trace, &[])?)
}

fn start_agent(directory: &Path, broker: &str, trace: &Path, refused: &[&str]) -> Result<Agent, Failure> {
    let data = directory.join("agent").display().to_string();
    let arguments = ["run", "--device", DEVICE, "--cloud", broker, "--data", &data, "--http", "127.0.0.1:0"];
    let environment = [("EDGEWISE_UPLOAD_INTERVAL", "100ms"), ("EDGEWISE_COLLECT_WRITE_INTERVAL", "20ms")];
    let log = directory.join("agent.log");
    let process = Process::start_traced("edgewise-agent", arguments, &environment, &log, trace, refused)?;
    let agent = Agent::ready(process)?;
    let client = Client::new(&agent.http);
    wait_until(PATIENCE, || match client.get("/v2/health/ready")?.status {
        200 => Ok(()),
        status => Err(format!("ready answers {status}")),
    })?;
    Ok(agent)
}

/// Scores rows, asking after each how many are counted, until all are.
fn score(agent: &Agent, rows: Range<usize>) -> Result<(), Failure> {
    let (client, windows, end) = (Client::new(&agent.http), data::test_split()?, rows.end);
    for (row, window) in rows.zip(&windows) {
        client.predict_as(window, Some(&id(row)))?;
        client.metric(COUNTED)?;
    }
    wait_for_metric(agent, COUNTED, end)
}

fn wait_for_metric(agent: &Agent, name: &str, wanted: usize) -> Result<(), Failure> {
    let client = Client::new(&agent.http);
    wait_until(PATIENCE, || match client.metric(name)? {
        found if found == wanted as u64 => Ok(()),
        found => Err(format!("{name} is {found}, not {wanted}")),
    })
}

/// All of one length, so that none is the beginning of another.
fn id(row: usize) -> String {
    format!("row-{row:04}")
}

/// Rows are captured in order, so that the first N are those that `/metrics` has counted when it says N.
fn counted_rows(trace: &Trace, root: &Path) -> Result<usize, Failure> {
    let mut known = 0;
    for (moment, text) in trace.said(COUNTED) {
        let counted = text.split(&format!("\\n{COUNTED} ")).nth(1).and_then(|rest| rest.split("\\n").next());
        let counted = counted.and_then(|number| number.parse().ok()).ok_or("there is no count of rows")?;
        for row in known..counted {
            let written = trace.written("/spool/segment-", &id(row));
            let (written, file) = written.first().ok_or_else(|| format!("{} is nowhere written", id(row)))?;
            trace.synced(file, *written, moment)?;
            trace.names_kept(root, file, moment)?;
        }
        known = known.max(counted);
    }
    Ok(known)
}

/// What is found in the segment of a killed agent counts from when its name says where it ends: all that was written of
/// it, by whom ever, is on the medium then. Of what sled moves to a name in it nothing is relied on: those are snapshots,
/// short forms of its log with a checksum, and they are deleted before a segment is opened.
fn found_segment(trace: &Trace, _: &Path) -> Result<usize, Failure> {
    let mut named = trace.moved("/spool/segment-").into_iter().filter(|(_, _, to)| !to.contains("/snap."));
    let (moved, segment, _) = named.next().ok_or("no segment is found")?;
    let written = trace.written(&format!("{segment}/"), "").into_iter();
    let before: Vec<_> = written.filter(|(written, _)| *written < moved).collect();
    for (written, file) in &before {
        trace.synced(file, *written, moved)?;
    }
    Ok(before.len())
}

/// What a killed cloud has left in its log is read, and receipts rest on it: it is on the medium before this one writes or
/// says anything.
fn found_log(trace: &Trace, root: &Path) -> Result<usize, Failure> {
    let log = root.join("edgewise.db-wal").display().to_string();
    let (said, _) = trace.said("durable_through").into_iter().next().ok_or("there is no receipt")?;
    let own = trace.written(&log, "").into_iter().next().map_or(said, |(written, _)| written);
    trace.synced(&log, Moment::BEGINNING, own.min(said))?;
    Ok(1)
}

/// A segment goes once the ledger knows that its rows are uploaded.
fn receipts(trace: &Trace, root: &Path) -> Result<usize, Failure> {
    let ledger = root.join("spool/ledger").display().to_string();
    let removed = trace.removed("/db");
    for moment in &removed {
        let written = trace.written(&ledger, "").into_iter().rev().find(|(written, _)| written < moment);
        let (written, _) = written.ok_or("the ledger is nowhere written")?;
        trace.synced(&ledger, written, *moment)?;
    }
    Ok(removed.len())
}

/// Each phase is in the file of deployments, under its name, before the cloud hears of it.
fn phases(trace: &Trace, root: &Path) -> Result<usize, Failure> {
    let mut found = 0;
    // As CBOR has them: the length, and the text.
    for phase in ["phasehfetching", "phaseiverifying", "phasegproving", "phasefactive"] {
        for (moment, _) in trace.said("/reported").into_iter().filter(|(_, text)| text.contains(phase)) {
            let written = trace.written("/deployments.new", phase);
            let (written, file) = written.first().ok_or_else(|| format!("{phase} is nowhere written"))?;
            let moved = trace.moved("/deployments").into_iter().find(|(moved, _, _)| moved > written);
            let (moved, _, _) = moved.ok_or("the deployments never get their name")?;
            trace.synced(file, *written, moved)?;
            trace.synced(&root.display().to_string(), moved, moment)?;
            found += 1;
        }
    }
    Ok(found)
}

/// All of a bundle is there for good before it is written down that it is being proved.
fn verified_bundles(trace: &Trace, root: &Path) -> Result<usize, Failure> {
    let proving = trace.written("/deployments.new", "phasegproving");
    let (moment, _) = proving.first().ok_or("nothing is ever proved")?;
    let packed = trace.written("/vault/chunks/", "").into_iter();
    let packed: Vec<_> = packed.filter(|(written, _)| written < moment).collect();
    for (written, file) in &packed {
        trace.synced(file, *written, *moment)?;
        trace.names_kept(root, file, *moment)?;
    }
    let (manifests, _) =
        trace.folder_kept(root, "/vault/manifests/", *moment)?.ok_or("there is no manifest")?;
    Ok(packed.len().min(manifests))
}

/// The bytes in a new pack are on the medium before its index, and both are before the old pack goes.
fn moved_chunks(trace: &Trace, root: &Path) -> Result<usize, Failure> {
    let removed = *trace.removed("/vault/chunks/").first().ok_or("no pack is removed")?;
    let written = trace.written("/vault/chunks/", "").into_iter();
    let before: Vec<_> = written.filter(|(written, _)| *written < removed).collect();
    let index = before.iter().rev().find(|(_, file)| file.ends_with(".index"));
    let (named, index) = index.ok_or("no index is written")?;
    let chunks = index.replace(".index", ".chunks");
    let moved: Vec<_> = before.iter().filter(|(_, file)| *file == chunks).collect();
    moved.iter().try_for_each(|(written, _)| trace.synced(&chunks, *written, *named))?;
    trace.synced(index, *named, removed)?;
    [index, &chunks].iter().try_for_each(|file| trace.names_kept(root, file, removed))?;
    Ok(moved.len())
}

fn sent_receipts(trace: &Trace, root: &Path) -> Result<usize, Failure> {
    let receipts = trace.said("durable_through");
    receipts.iter().try_for_each(|(moment, _)| committed(trace, root, "/objects/modeldata/", *moment))?;
    Ok(receipts.len())
}

fn registered(trace: &Trace, root: &Path) -> Result<usize, Failure> {
    let created = trace.said("HTTP/1.1 201 Created");
    created.iter().try_for_each(|(moment, _)| committed(trace, root, "/objects/", *moment))?;
    Ok(created.len())
}

/// The objects in a folder are durable, and a transaction that followed the last of them is.
fn committed(trace: &Trace, root: &Path, folder: &str, moment: Moment) -> Result<(), Failure> {
    let (_, last) = trace.folder_kept(root, folder, moment)?.ok_or("there are no objects")?;
    let log = root.join("edgewise.db-wal").display().to_string();
    let later = trace.written(&log, "").into_iter().filter(|(written, _)| *written > last);
    let is_synced =
        later.map(|(written, _)| trace.synced(&log, written, moment)).any(|synced| synced.is_ok());
    if !is_synced {
        return Err("no transaction is synced after the objects".to_owned());
    }
    trace.names_kept(root, &log, moment)
}
