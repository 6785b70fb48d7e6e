//! `POST /score` against Azure ML's own inference server with an entry script of numpy and ONNX Runtime.
//!
//! The server runs as it ships: a worker of gunicorn takes one request at a time and ends the connection with its answer,
//! so each of its requests comes over a new one. It gets as many workers as cores and threads allow.

use std::path::Path;

use e2e::files;
use e2e::mosquitto::free_port;
use e2e::process::{Failure, Process};

use crate::caller::Question;
use crate::installed::{installed, same_answer};
use crate::measure::{Unit, compare, in_turns, skipped};
use crate::sample;
use crate::serving::{address, agent, crowded, latency};
use crate::work::Work;

const NAME: &str = "azureml-inference-server-http 1.5.1, numpy and ONNX Runtime";

/// What pip installs for it: ONNX Runtime as `cross/onnxruntime` has it, numpy as the tests have it, and what the server's
/// speed depends on.
const PACKAGES: [&str; 6] = [
    "azureml-inference-server-http==1.5.1",
    "flask==3.1.3",
    "gunicorn==27.0.1",
    "numpy==2.2.6",
    "onnxruntime==1.32.0",
    "werkzeug==3.1.9",
];

/// What the server says once in each worker.
const READY: &str = "init has completed successfully";

pub(crate) fn measure(directory: &Path) -> Result<(), Failure> {
    let Some(library) = sample::library() else {
        skipped("azureml", "there is no ONNX Runtime here; run cross/onnxruntime");
        return Ok(());
    };
    let Some(installed) = installed("azureml", &PACKAGES) else { return Ok(()) };
    let directory = directory.join("azureml");
    for work in Work::all(&directory)? {
        let ours = agent(&work, &library.display().to_string(), &directory, 1)?;
        let theirs = Server::start(&installed, &work, &directory)?;
        let addresses = [address(&ours.http), &theirs.address];
        same_answer(addresses, "/score", &work.rows())?;
        let (figure, question) = (format!("{}, /score", work.name), Question::Http(work.score().into()));
        latency(&figure, NAME, addresses, &question)?;
        crowded(&figure, NAME, addresses, &question)?;
        let mebibytes = |bytes: u64| vec![bytes as f64 / f64::from(1 << 20)];
        let memory = in_turns(
            1,
            || shared_out(&[ours.process.id()]).map(mebibytes),
            || theirs.processes().and_then(|all| shared_out(&all)).map(mebibytes),
        )?;
        let figure = format!("{}, proportional memory after that", work.name);
        compare(&figure, Unit::Mebibytes, &format!("{NAME}, {} workers", work.instances()), memory);
    }
    Ok(())
}

/// The server, ended in order when it goes out of scope: its workers outlive a killed one by minutes.
struct Server {
    process: Process,
    address: String,
}

impl Server {
    fn start(installed: &Path, work: &Work, directory: &Path) -> Result<Self, Failure> {
        let port = free_port()?.to_string();
        let workers = work.instances();
        let script = e2e::repository().join("tests/benches/azureml_score.py").display().to_string();
        let models = work.onnx.parent().unwrap_or(directory).display().to_string();
        let (threads, count) = (work.threads.to_string(), workers.to_string());
        let arguments =
            ["--entry_script", &script, "--model_dir", &models, "--port", &port, "--worker_count", &count];
        let log = directory.join("azmlinfsrv.log");
        let mut process = Process::start_program(
            &installed.join("bin/azmlinfsrv"),
            "azmlinfsrv",
            arguments,
            &[("SCORE_THREADS", &threads)],
            &log,
        )?;
        for _ in 0..workers {
            process.wait_for_line(READY)?;
        }
        Ok(Self { process, address: format!("127.0.0.1:{port}") })
    }

    /// The ids of it and its workers.
    fn processes(&self) -> Result<Vec<u32>, Failure> {
        let id = self.process.id();
        let children = files::read(Path::new(&format!("/proc/{id}/task/{id}/children")))?;
        Ok([id].into_iter().chain(children.split_whitespace().filter_map(|id| id.parse().ok())).collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(why) = self.process.terminate() {
            eprintln!("figures: {why}");
        }
    }
}

/// Bytes that processes have resident, what they share counted once among those who do.
fn shared_out(processes: &[u32]) -> Result<u64, Failure> {
    let proportional = |id: &u32| {
        let path = format!("/proc/{id}/smaps_rollup");
        let text = files::read(Path::new(&path))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.map(|kibibytes| kibibytes * 1024).ok_or_else(|| format!("{path} has no Pss"))
    };
    processes.iter().map(proportional).sum()
}
