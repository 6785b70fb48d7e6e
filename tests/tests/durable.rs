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

/// Rows that are scored while the cloud stands still, and as many after that.
const ROWS: usize = 40;

/// What `/metrics` calls the rows that the agent has taken.
const COUNTED: &str = "edgewise_rows_captured_total";
/// What it calls those that have a receipt.
const UPLOADED: &str = "edgewise_rows_uploaded_total";

#[test]
fn what_is_said_to_be_durable_was_synced_before() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/durable")?;
    let Traces { agent, cloud } = traces(&directory)?;

    let root = directory.join("agent");
    let [_, after_kill, _] = &agent;
    let check: (&str, Check, &[&str]) = ("a row that a killed agent left", found_rows, &["fdatasync"]);
    hold(&[check], after_kill, &root)?;
    let agent = agent.into_iter().reduce(Trace::followed_by).ok_or("no trace of the agent")?;
    let checks: [(&str, Check, &[&str]); 4] = [
        ("a counted row", counted_rows, &["fdatasync"]),
        ("a row that is deleted after its receipt", receipts, &["fdatasync"]),
        ("a phase that is reported", phases, &["fsync"]),
        ("a bundle that is being proved", verified_bundles, &["syncfs"]),
    ];
    hold(&checks, &agent, &root)?;
    let root = directory.join("cloud");
    let [_, after_kill] = &cloud;
    let check: (&str, Check, &[&str]) =
        ("what a killed cloud left", found_transactions, &["fsync", "fdatasync"]);
    hold(&[check], after_kill, &root)?;
    let cloud = cloud.into_iter().reduce(Trace::followed_by).ok_or("no trace of the cloud")?;
    let checks: [(&str, Check, &[&str]); 2] = [
        ("rows with a receipt", sent_receipts, &["fsync", "fdatasync"]),
        ("a version with a number", registered, &["fsync", "fdatasync"]),
    ];
    hold(&checks, &cloud, &root)
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

/// What a site's programs asked of the system, a trace for each of their lives.
struct Traces {
    agent: [Trace; 3],
    cloud: [Trace; 2],
}

/// A site's journey: a model is registered and deployed, rows are captured while the cloud stands still, by an agent
/// that is killed and by one that is told to end; the cloud is killed; rows are uploaded and more are captured.
fn traces(directory: &Path) -> Result<Traces, Failure> {
    let broker = Mosquitto::start(&directory.join("broker"))?;
    let trace = |name: &str| directory.join(format!("{name}.trace"));
    let mut cloud = start_cloud(directory, &broker.url, &trace("cloud-1"))?;
    let mut agent = start_agent(directory, &broker.url, &trace("agent-1"))?;
    cloud.register(&data::sample(Some(1)))?;
    cloud.text(&["deploy", &format!("{MODEL}:1"), "--device", DEVICE])?;
    cloud.wait_for_phase(DEVICE, MODEL, 1, "active")?;

    // Nobody takes rows, and nobody loses a connection.
    cloud.process.signal(libc::SIGSTOP);
    score(&agent, 0..ROWS)?;
    agent.process.kill();
    let first = agent.process.id();
    agent = start_agent(directory, &broker.url, &trace("agent-2"))?;
    score(&agent, ROWS..2 * ROWS)?;
    assert_eq!(agent.process.terminate()?, 0, "the agent's end");
    let second = agent.process.id();

    cloud.process.kill();
    let registry = cloud.process.id();
    cloud = start_cloud(directory, &broker.url, &trace("cloud-2"))?;
    agent = start_agent(directory, &broker.url, &trace("agent-3"))?;
    wait_for_metric(&agent, UPLOADED, 2 * ROWS)?;
    score(&agent, 2 * ROWS..3 * ROWS)?;
    wait_for_metric(&agent, UPLOADED, 3 * ROWS)?;
    assert_eq!(agent.process.terminate()?, 0, "the agent's last end");
    assert_eq!(cloud.process.terminate()?, 0, "the cloud's end");

    let read = |name: &str, process: u32| Trace::read(&trace(name), process);
    Ok(Traces {
        agent: [read("agent-1", first)?, read("agent-2", second)?, read("agent-3", agent.process.id())?],
        cloud: [read("cloud-1", registry)?, read("cloud-2", cloud.process.id())?],
    })
}

fn start_cloud(directory: &Path, broker: &str, trace: &Path) -> Result<Cloud, Failure> {
    let data = directory.join("cloud").display().to_string();
    let arguments = ["serve", "--data", &data, "--http", "127.0.0.1:0", "--mqtt", broker];
    let log = directory.join("cloud.log");
    Cloud::ready(Process::start_traced("edgewise", arguments, &[], &log, trace)?)
}

fn start_agent(directory: &Path, broker: &str, trace: &Path) -> Result<Agent, Failure> {
    let data = directory.join("agent").display().to_string();
    let arguments = ["run", "--device", DEVICE, "--cloud", broker, "--data", &data, "--http", "127.0.0.1:0"];
    let environment = [("EDGEWISE_UPLOAD_INTERVAL", "100ms"), ("EDGEWISE_COLLECT_WRITE_INTERVAL", "20ms")];
    let log = directory.join("agent.log");
    let agent = Agent::ready(Process::start_traced("edgewise-agent", arguments, &environment, &log, trace)?)?;
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

/// What a killed agent left in its segment may not have been synced by it.
fn found_rows(trace: &Trace, _: &Path) -> Result<usize, Failure> {
    let closed = trace.moved("/spool/segment-");
    let (moved, segment, _) = closed.first().ok_or("no segment is found")?;
    trace.synced(&format!("{segment}/db"), Moment::BEGINNING, *moved)?;
    Ok(1)
}

/// What a killed cloud left in its log may not have been synced by it.
fn found_transactions(trace: &Trace, root: &Path) -> Result<usize, Failure> {
    let receipts = trace.said("durable_through");
    let (moment, _) = receipts.first().ok_or("there is no receipt")?;
    let earlier = trace.written(&root.join("edgewise.db-wal").display().to_string(), "");
    let own = earlier.first().map_or(*moment, |(written, _)| *written);
    trace.synced(&root.join("edgewise.db-wal").display().to_string(), Moment::BEGINNING, own.min(*moment))?;
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
    Ok(trace.folder_kept(root, "/vault/chunks/", *moment)?.map_or(0, |(files, _)| files))
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
