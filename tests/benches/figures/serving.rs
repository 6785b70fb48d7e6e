//! Requests over HTTP and gRPC, against the least server that could answer them, and what capture adds.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::client::Client;
use e2e::files;
use e2e::process::{Agent, Failure, Process};

use crate::caller::{Caller, Question, throughput};
use crate::floor::FLOOR;
use crate::measure::{Unit, compare, in_turns, micros, skipped, timed};
use crate::sample;
use crate::socket::Socket;
use crate::work::Work;

/// Turns of so long: what is quick is asked a few thousand times, what is slow some hundred times.
const TURNS: usize = 20;
/// See [`TURNS`].
const TURN: Duration = Duration::from_millis(400);

/// Turns of a second each, with [`CROWD`] callers.
const CROWDED_TURNS: usize = 6;
/// As many connections as a busy gateway has.
const CROWD: usize = 8;

/// The load at which capture is measured: a question every two milliseconds.
const PACE: Duration = Duration::from_millis(2);

const NAME: &str = "axum, serde_json, tonic and ONNX Runtime, nothing else";

pub(crate) fn measure(directory: &Path) -> Result<(), Failure> {
    let Some(library) = sample::library() else {
        skipped("serving", "there is no ONNX Runtime here; run cross/onnxruntime");
        return Ok(());
    };
    let library = library.display().to_string();
    let directory = directory.join("serving");
    for work in Work::all(&directory)? {
        let ours = agent(&work, &library, &directory, 1)?;
        let peer = floor(&work, &library, &directory)?;
        let addresses = [address(&ours.http), &peer.1];
        protocols(&work, NAME, addresses, addresses)?;
        let mut engine = sample::engine(&work)?;
        let inputs = work.tensors()?;
        let score = || engine.score(&inputs).map(drop).map_err(|error| error.to_string());
        let binary = Question::Http(work.binary().into());
        let (mut caller, mut socket) = (Caller::open(address(&ours.http), &binary)?, Socket::open(&work)?);
        let figure = format!("{}, binary, p50", work.name);
        against(&figure, "the engine called directly", || caller.ask(), score)?;
        against(&figure, "the engine behind a bare socket", || caller.ask(), || socket.ask())?;
        memory(&work, NAME, [&ours.process, &peer.0])?;
    }
    Ok(())
}

/// What rows that are captured cost those who ask: one agent captures all, the other none; no cloud takes them.
pub(crate) fn capture(directory: &Path) -> Result<(), Failure> {
    let Some(library) = sample::library() else {
        skipped("capture", "there is no ONNX Runtime here; run cross/onnxruntime");
        return Ok(());
    };
    let library = &library.display().to_string();
    let work = Work::sample()?;
    let bundle = bundle(&work).display().to_string();
    let start = |captures: &str| {
        let data = directory.join(format!("captures-{captures}"));
        // Nobody listens there.
        let more = ["--provider", "cpu", "--onnxruntime", library, "--local", &bundle];
        Agent::start_with(
            &data,
            "bench",
            "mqtt://127.0.0.1:9",
            0,
            &more,
            &[("EDGEWISE_COLLECT_ENABLED", captures)],
        )
    };
    let (with, without) = (start("true")?, start("false")?);
    let question = Question::Http(work.json().into());
    let open = |agent: &Agent| Caller::open(address(&agent.http), &question);
    let (mut ours, mut theirs) = (open(&with)?, open(&without)?);
    let compared = in_turns(TURNS, || paced(&mut ours), || paced(&mut theirs))?;
    compare("captured, 500 a second, p50", Unit::Microseconds, "without capture", compared);
    let each = |agent: &Agent| {
        throughput(address(&agent.http), &question, CROWD, Duration::from_secs(1)).map(|rate| vec![rate])
    };
    let compared = in_turns(CROWDED_TURNS, || each(&with), || each(&without))?;
    compare("captured, as fast as it goes", Unit::PerSecond, "without capture", compared);
    let count = |name: &str| Client::new(&with.http).metric(name);
    let captured = count("edgewise_rows_captured_total")?;
    if captured == 0 {
        return Err("nothing was captured".to_owned());
    }
    Ok(())
}

fn paced(caller: &mut Caller) -> Result<Vec<f64>, Failure> {
    let begun = Instant::now();
    let questions = u32::try_from(TURN.as_micros() / PACE.as_micros()).unwrap_or(1);
    let ask = |number: u32| {
        std::thread::sleep((PACE * number).saturating_sub(begun.elapsed()));
        let asked = Instant::now();
        caller.ask().map(|()| micros(asked.elapsed()))
    };
    (0..questions).map(ask).collect()
}

/// A model asked in every form, by one caller and by many: ours and the peer's addresses for HTTP and for gRPC.
pub(crate) fn protocols(work: &Work, peer: &str, http: [&str; 2], grpc: [&str; 2]) -> Result<(), Failure> {
    for (form, question, addresses) in [
        ("JSON", Question::Http(work.json().into()), http),
        ("binary", Question::Http(work.binary().into()), http),
        ("gRPC", Question::Grpc(work.grpc()), grpc),
    ] {
        let figure = format!("{}, {form}", work.name);
        latency(&figure, peer, addresses, &question)?;
        crowded(&figure, peer, addresses, &question)?;
    }
    Ok(())
}

/// What ours and the peer's process have resident after that.
pub(crate) fn memory(work: &Work, peer: &str, [ours, theirs]: [&Process; 2]) -> Result<(), Failure> {
    let resident =
        |process: &Process| process.resident().map(|bytes| vec![bytes as f64 / f64::from(1 << 20)]);
    let memory = in_turns(1, || resident(ours), || resident(theirs))?;
    compare(&format!("{}, resident after that", work.name), Unit::Mebibytes, peer, memory);
    Ok(())
}

/// How long an answer takes, asked over one connection to each of two addresses: ours and the peer's.
pub(crate) fn latency(
    figure: &str,
    peer: &str,
    [ours, theirs]: [&str; 2],
    question: &Question,
) -> Result<(), Failure> {
    let (mut ours, mut theirs) = (Caller::open(ours, question)?, Caller::open(theirs, question)?);
    against(&format!("{figure}, p50"), peer, || ours.ask(), || theirs.ask())
}

fn against(
    figure: &str,
    peer: &str,
    mut ours: impl FnMut() -> Result<(), Failure>,
    mut theirs: impl FnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    // As many as fit into a turn, as the first few tell.
    let fastest = timed(3, &mut theirs)?.into_iter().fold(f64::INFINITY, f64::min);
    let questions = (micros(TURN) / fastest).ceil() as usize;
    let compared = in_turns(TURNS, || timed(questions, &mut ours), || timed(questions, &mut theirs))?;
    compare(figure, Unit::Microseconds, peer, compared);
    Ok(())
}

/// As [`latency`]: how many answers a second many callers get.
pub(crate) fn crowded(
    figure: &str,
    peer: &str,
    [ours, theirs]: [&str; 2],
    question: &Question,
) -> Result<(), Failure> {
    let each =
        |address: &str| throughput(address, question, CROWD, Duration::from_secs(1)).map(|rate| vec![rate]);
    let compared = in_turns(CROWDED_TURNS, || each(ours), || each(theirs))?;
    compare(&format!("{figure}, {CROWD} callers"), Unit::PerSecond, peer, compared);
    Ok(())
}

/// The floor with a model, and its address.
fn floor(work: &Work, library: &str, directory: &Path) -> Result<(Process, String), Failure> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let (onnx, threads) = (work.onnx.display().to_string(), work.threads.to_string());
    let arguments = [FLOOR, &onnx, &threads, library];
    let mut process = Process::start_program(&program, FLOOR, arguments, &[], &directory.join("floor.log"))?;
    let line = process.wait_for_line("ready")?;
    let found = line.split_whitespace().find_map(|word| word.strip_prefix("http=http://"));
    let address = found.map(str::to_owned).ok_or_else(|| format!("there is no address in {line:?}"))?;
    Ok((process, address))
}

/// The agent that serves it, without a cloud, with so many instances and as many threads for each as its peers have.
pub(crate) fn agent(
    work: &Work,
    library: &str,
    directory: &Path,
    instances: usize,
) -> Result<Agent, Failure> {
    let settings = directory.join(format!("{}.toml", work.name));
    files::write(&settings, format!("[engine]\ninstances = {instances}\nthreads = {}\n", work.threads))?;
    let settings = settings.display().to_string();
    let flags = ["--provider", "cpu", "--onnxruntime", library, "--config", &settings];
    Agent::start_local(&directory.join(work.name), &bundle(work), &flags)
}

/// What the agent serves: the whole bundle where there is one.
fn bundle(work: &Work) -> std::path::PathBuf {
    if work.name == e2e::data::MODEL { sample::bundle() } else { work.onnx.clone() }
}

/// The `HOST:PORT` of a URL.
pub(crate) fn address(url: &str) -> &str {
    url.trim_start_matches("http://")
}
