//! Whether memory stays flat: the same thing done over and over to a real agent, and what it has resident meanwhile.

use std::time::{Duration, Instant};

use crate::bounds::{Burst, FAST, SPOOL_BYTES, fast_model};
use crate::client::Client;
use crate::data::{self, MODEL};
use crate::flow::Background;
use crate::process::{Agent, Failure, Process, wait_until};
use crate::site::{DEVICE, Site};

/// How far a reading may be above the one after the warm-up: what heaps of threads and caches of libraries differ
/// by from moment to moment. A leak of a model or a connection shows as hundreds of times as much.
const GROWTH_BYTES: u64 = 6 << 20;

/// Readings in all; the first fifth is warm-up.
const READINGS: u64 = 20;
const WARM_UP: u64 = READINGS / 5;

/// How long the load may take until the next reading.
const LOAD: Duration = Duration::from_secs(1800);

/// What may be resident after a load and with a full spool, beyond what was before: the buffers of 4 connections, sled's
/// cache, and what the allocator keeps.
const LOADED_BYTES: u64 = 15 << 20;

/// Clients of that load.
const LOADERS: usize = 4;

/// A broker that is not there.
const NOBODY: &str = "mqtt://127.0.0.1:9";

/// How often what is resident is looked at under that load.
const LOOK: Duration = Duration::from_millis(200);

/// How long a full spool and what is left of the load may take: it fills at some thousand rows a second, and threads that
/// have nothing to do end after some seconds.
const SETTLE: Duration = Duration::from_secs(60);

/// How long a link may take to come back: pauses of a second, and what connecting takes.
const LINK: Duration = Duration::from_secs(30);

/// Scores so often, by two clients, on ONNX Runtime where it is and on tract.
pub fn scores(total: u64, provider: &str) -> Result<String, Failure> {
    let directory = crate::fresh_directory(&format!("soak-scores-{provider}"))?;
    let library = crate::onnxruntime().unwrap_or_default().display().to_string();
    let flags = ["--provider", provider, "--onnxruntime", &library];
    let flags = if provider == "tract" { flags.get(..2).unwrap_or_default() } else { &flags };
    let agent = Agent::start_local(&directory.join("agent"), &data::sample(Some(2)), flags)?;
    let flow = Background::start(&agent.http, &data::test_split()?);
    let told = watch(&format!("scores on {provider}"), total, &agent.process, |done| {
        wait_until(LOAD, || match flow.so_far().total() {
            now if now >= done => Ok(()),
            now => Err(format!("{now} scores")),
        })
    })?;
    let flowed = flow.stop()?;
    if flowed.failed == 0 {
        Ok(told)
    } else {
        Err(format!("{} scores failed: {}", flowed.failed, flowed.why))
    }
}

/// Deploys one of two versions and then the other so often, each time loaded and proven anew, while requests flow.
pub fn swaps(total: u64, provider: &str) -> Result<String, Failure> {
    let library = crate::onnxruntime().unwrap_or_default().display().to_string();
    let mut site = Site::start_with(&format!("soak-swaps-{provider}"), &engine(provider, &library))?;
    site.bring(1)?;
    site.bring(2)?;
    let known = site.cloud.model_on(DEVICE, MODEL)?;
    if known["provider"] != provider {
        return Err(format!("not on {provider}: {known}"));
    }
    let flow = Background::start(&site.agent.http, &data::test_split()?);
    let (mut done, mut serving) = (0, 2);
    let told = watch(&format!("swaps on {provider}"), total, &site.agent.process, |until| {
        while done < until {
            serving = 3 - serving;
            site.cloud.text(&["deploy", &format!("{MODEL}:{serving}"), "--device", DEVICE])?;
            site.wait_for_version(serving)?;
            done += 1;
        }
        Ok(())
    })?;
    let flowed = flow.stop()?;
    site.agent.process.kill();
    if flowed.failed == 0 {
        Ok(told)
    } else {
        Err(format!("{} scores failed: {}", flowed.failed, flowed.why))
    }
}

/// Captures every score of so long a time while no cloud takes the rows and the spool gives up the oldest of them; compares
/// what is resident after that with what was before.
pub fn outbox(duration: Duration, provider: &str) -> Result<String, Failure> {
    let directory = crate::fresh_directory(&format!("soak-outbox-{provider}"))?;
    let fast = directory.join(FAST).with_extension("onnx");
    std::fs::copy(fast_model(), &fast).map_err(|error| format!("making {}: {error}", fast.display()))?;
    let (fast, sample) = (fast.display().to_string(), data::sample(Some(2)).display().to_string());
    let (library, spool) = (crate::onnxruntime().unwrap_or_default(), SPOOL_BYTES.to_string());
    let library = library.display().to_string();
    let mut variables = engine(provider, &library);
    variables.extend([("EDGEWISE_COLLECT_ENABLED", "true"), ("EDGEWISE_SPOOL_MAX_BYTES", &spool)]);
    let agent = Agent::start_with(
        &directory.join("agent"),
        DEVICE,
        NOBODY,
        0,
        &["--local", &sample, "--local", &fast],
        &variables,
    )?;
    let client = Client::new(&agent.http);
    let idle = agent.process.resident()?;
    let mut burst = Burst::default();
    let dropped = || client.metric("edgewise_rows_dropped_total{reason=\"spool_full\"}");
    let begun = Instant::now();
    // The counter is there from its first row on.
    while dropped().unwrap_or(0) == 0 {
        burst.send(&client)?;
        if begun.elapsed() > SETTLE {
            return Err(format!("the spool of {spool} bytes is not full after {SETTLE:?}"));
        }
    }
    let (full, begun) = (dropped()?, Instant::now());
    let flow = Background::start_with(&agent.http, &data::test_split()?, LOADERS);
    let mut most = agent.process.resident()?;
    while begun.elapsed() < duration {
        std::thread::sleep(LOOK);
        most = most.max(agent.process.resident()?);
    }
    let flowed = flow.stop()?;
    let given_up = dropped()? - full;
    if flowed.failed > 0 || flowed.total() == 0 {
        return Err(format!("{} of {} scores failed: {}", flowed.failed, flowed.total(), flowed.why));
    }
    let after = wait_until(SETTLE, || match agent.process.resident()? {
        after if after <= idle + LOADED_BYTES => Ok(after),
        after => Err(format!("{:.1} MB resident, {:.1} MB before", megabytes(after), megabytes(idle))),
    })?;
    Ok(format!(
        "{:.0} s of load on {provider} with a full spool: {} scores, {given_up} rows given up; {:.1} MB resident before, \
         {:.1} MB at most meanwhile, {:.1} MB after",
        duration.as_secs_f64(),
        flowed.total(),
        megabytes(idle),
        megabytes(most),
        megabytes(after)
    ))
}

/// Kills the broker so often, waiting each time until the link is back; its pauses are as short as they can be had.
pub fn reconnects(total: u64) -> Result<String, Failure> {
    let site = Site::start_with("soak-reconnects", &[("EDGEWISE_CLOUD_LONGEST_PAUSE", "1s")])?;
    site.bring(1)?;
    let Site { mut broker, cloud, agent, .. } = site;
    let client = Client::new(&agent.http);
    let mut done = 0;
    let told = watch("reconnects", total, &agent.process, |until| {
        while done < until {
            broker.kill();
            broker.restart()?;
            let wanted = client.metric("edgewise_link_connects_total")? + 1;
            wait_until(LINK, || match client.metric("edgewise_link_connects_total")? {
                connects if connects >= wanted => Ok(()),
                connects => Err(format!("{connects} connects")),
            })?;
            done += 1;
        }
        Ok(())
    })?;
    cloud.wait_for_phase(DEVICE, MODEL, 1, "active")?;
    Ok(told)
}

/// The environment in which an agent runs its models so.
fn engine<'a>(provider: &'a str, library: &'a str) -> Vec<(&'static str, &'a str)> {
    let mut variables = vec![("EDGEWISE_ENGINE_PROVIDER", provider)];
    if provider != "tract" {
        variables.push(("EDGEWISE_ENGINE_ONNXRUNTIME", library));
    }
    variables
}

/// Reads what is resident at even steps of `work`, which is told how far to go, and compares it with the bound.
fn watch(
    what: &str,
    total: u64,
    process: &Process,
    mut work: impl FnMut(u64) -> Result<(), Failure>,
) -> Result<String, Failure> {
    let (mut readings, mut most) = (Vec::new(), 0);
    for step in 1..=READINGS {
        let done = (total * step / READINGS).max(1);
        work(done)?;
        let resident = process.resident()?;
        println!("soak: {done} {what}: {:.1} MB resident", megabytes(resident));
        readings.push(resident);
        if step > WARM_UP {
            most = most.max(resident);
        }
    }
    let warm = readings.get(WARM_UP as usize - 1).copied().unwrap_or_default();
    let told = format!(
        "{total} {what}: {:.1} MB after a fifth, {:.1} MB at most after that, {:.1} MB at the end",
        megabytes(warm),
        megabytes(most),
        megabytes(readings.last().copied().unwrap_or_default())
    );
    if most <= warm + GROWTH_BYTES { Ok(told) } else { Err(format!("memory grows: {told}")) }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
