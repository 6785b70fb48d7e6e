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

/// Rows that are scored with the broker away, and after it has come back.
const ROWS: usize = 40;

/// What `/metrics` calls the rows that the agent has taken.
const COUNTED: &str = "edgewise_rows_captured_total";

#[test]
fn what_is_said_to_be_durable_was_synced_before() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/durable")?;
    let (agent, cloud) = traces(&directory)?;

    let root = directory.join("agent");
    let checks: [(&str, Check, &[&str]); 4] = [
        ("a counted row", counted_rows, &["fdatasync"]),
        ("a row that is deleted after its receipt", receipts, &["fdatasync"]),
        ("a phase that is reported", phases, &["fsync"]),
        ("a bundle that is being proved", verified_bundles, &["syncfs"]),
    ];
    hold(&checks, &agent, &root)?;
    let root = directory.join("cloud");
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

/// A site's journey: a model is registered and deployed, rows are captured without a broker, the agent is started anew,
/// rows are uploaded and more are captured. What its agent and its cloud asked of the system.
fn traces(directory: &Path) -> Result<(Trace, Trace), Failure> {
    let mut broker = Mosquitto::start(&directory.join("broker"))?;
    let trace = |name: &str| directory.join(format!("{name}.trace"));
    let data = |name: &str| directory.join(name).display().to_string();
    let arguments = ["serve", "--data", &data("cloud"), "--http", "127.0.0.1:0", "--mqtt", &broker.url];
    let log = directory.join("cloud.log");
    let mut cloud = Cloud::ready(Process::start_traced("edgewise", arguments, &[], &log, &trace("cloud"))?)?;
    let mut agent = start_agent(directory, &broker.url, &trace("first"))?;
    cloud.register(&data::sample(Some(1)))?;
    cloud.text(&["deploy", &format!("{MODEL}:1"), "--device", DEVICE])?;
    cloud.wait_for_phase(DEVICE, MODEL, 1, "active")?;

    broker.kill();
    score(&agent, 0..ROWS)?;
    let (first, code) = (agent.process.id(), agent.process.terminate()?);
    assert_eq!(code, 0, "the agent's end");
    broker.restart()?;
    agent = start_agent(directory, &broker.url, &trace("second"))?;
    score(&agent, ROWS..2 * ROWS)?;
    wait_for_metric(&agent, "edgewise_rows_uploaded_total", 2 * ROWS)?;
    let (second, code) = (agent.process.id(), agent.process.terminate()?);
    assert_eq!(code, 0, "the agent's second end");
    let (registry, code) = (cloud.process.id(), cloud.process.terminate()?);
    assert_eq!(code, 0, "the cloud's end");

    let agent = Trace::read(&trace("first"), first)?.followed_by(Trace::read(&trace("second"), second)?);
    Ok((agent, Trace::read(&trace("cloud"), registry)?))
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
