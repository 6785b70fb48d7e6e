//! Triton's own server beside ours: its C++ front end, with a backend that is the bare engine (`triton_backend.rs`).
//!
//! The server is the one in NVIDIA's wheel, which brings no backend for ONNX Runtime. It serves no metrics, its models are
//! described to it, and the backend reports no statistics, which Triton's own do; otherwise it runs as it ships. Both have as many
//! instances of a model as cores and threads allow.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::client::Client;
use e2e::files;
use e2e::mosquitto::free_port;
use e2e::process::{Failure, Process, wait_until};
use engine::TensorSpec;

use crate::installed::{installed, same_answer};
use crate::measure::skipped;
use crate::sample;
use crate::serving::{address, agent, memory, protocols};
use crate::work::Work;

const NAME: &str = "Triton 2.51 (C++) with the bare engine";

/// What pip is told; what the wheel's Python half needs is not used.
const WORDS: [&str; 2] = ["--no-deps", "nvidia-pytriton==0.7.0"];

/// What Triton calls the backend.
const BACKEND: &str = "bare";

/// How long it may take until it serves.
const READY: Duration = Duration::from_secs(60);

pub(crate) fn measure(directory: &Path) -> Result<(), Failure> {
    let Some(library) = sample::library() else {
        skipped("triton", "there is no ONNX Runtime here; run cross/onnxruntime");
        return Ok(());
    };
    let Some(installed) = installed("triton", &WORDS) else { return Ok(()) };
    let (directory, library) = (directory.join("triton"), library.display().to_string());
    let folder = directory.join("backends").join(BACKEND);
    make(&folder)?;
    copy(&backend()?, &folder.join(format!("libtriton_{BACKEND}.so")))?;
    for work in Work::all(&directory)? {
        let ours = agent(&work, &library, &directory, work.instances())?;
        let theirs = Server::start(&installed, &work, &library, &directory)?;
        let http = [address(&ours.http), &theirs.http];
        same_answer(http, &work.infer(), &work.inputs())?;
        protocols(&work, NAME, http, [address(&ours.http), &theirs.grpc])?;
        memory(&work, NAME, [&ours.process, &theirs.process])?;
    }
    Ok(())
}

struct Server {
    process: Process,
    http: String,
    grpc: String,
}

impl Server {
    fn start(installed: &Path, work: &Work, library: &str, directory: &Path) -> Result<Self, Failure> {
        let models = directory.join(format!("{}-models", work.name));
        make(&models.join(work.name).join("1"))?;
        files::write(&models.join(work.name).join("config.pbtxt"), configuration(work)?)?;
        let (http, grpc) = (free_port()?.to_string(), free_port()?.to_string());
        let (models, backends) =
            (models.display().to_string(), directory.join("backends").display().to_string());
        let arguments = [
            ("--model-repository", models.as_str()),
            ("--backend-directory", &backends),
            ("--http-address", "127.0.0.1"),
            ("--http-port", &http),
            ("--grpc-address", "127.0.0.1"),
            ("--grpc-port", &grpc),
            ("--allow-metrics", "false"),
        ];
        let flags = arguments.into_iter().map(|(name, value)| format!("{name}={value}"));
        let (onnx, threads) = (work.onnx.display().to_string(), work.threads.to_string());
        let environment = [
            ("BACKEND_MODEL", onnx.as_str()),
            ("BACKEND_THREADS", &threads),
            ("BACKEND_LIBRARY", library),
            ("ORT_DISABLE_TELEMETRY", "1"),
        ];
        let process = Process::start_program(
            &tritonserver(installed)?,
            "tritonserver",
            flags.chain(["--disable-auto-complete-config".to_owned()]),
            &environment,
            &directory.join(format!("{}-triton.log", work.name)),
        )?;
        let [http, grpc] = [http, grpc].map(|port| format!("127.0.0.1:{port}"));
        let client = Client::new(&format!("http://{http}"));
        wait_until(READY, || match client.get("/v2/health/ready")?.status {
            200 => Ok(()),
            status => Err(format!("Triton answers {status} where it is asked whether it is ready")),
        })
        .map_err(|why| format!("{why}; it says:\n{}", process.log_tail()))?;
        Ok(Self { process, http, grpc })
    }
}

/// The model as Triton wants it described.
fn configuration(work: &Work) -> Result<String, Failure> {
    let engine = sample::engine(work)?;
    let tensors = |specs: &[TensorSpec]| {
        let tensor = |spec: &TensorSpec| {
            let lengths =
                spec.shape.iter().map(|length| length.map_or("-1".into(), |length| length.to_string()));
            let (name, data_type) = (&spec.name, spec.data_type.oip_name());
            let dims = lengths.collect::<Vec<String>>().join(", ");
            format!("{{ name: \"{name}\" data_type: TYPE_{data_type} dims: [ {dims} ] }}")
        };
        specs.iter().map(tensor).collect::<Vec<String>>().join(", ")
    };
    let (name, signature) = (work.name, engine.signature());
    let (inputs, outputs) = (tensors(&signature.inputs), tensors(&signature.outputs));
    let count = work.instances();
    Ok(format!(
        "name: \"{name}\"\nbackend: \"{BACKEND}\"\nmax_batch_size: 0\ninput [ {inputs} ]\noutput [ {outputs} ]\n\
         instance_group [ {{ kind: KIND_CPU count: {count} }} ]\n"
    ))
}

/// The backend, built as the benches are.
fn backend() -> Result<PathBuf, Failure> {
    let built = e2e::target().join("examples/libtriton_backend.so");
    // Set by `cargo bench`; without it the library was put there by whoever started this.
    if let Some(cargo) = std::env::var_os("CARGO") {
        let words = ["build", "--quiet", "--profile", "bench", "--workspace", "--example", "triton_backend"];
        let status = Command::new(cargo).args(words).current_dir(e2e::repository()).status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(format!("the backend could not be built: {status}")),
            Err(error) => return Err(format!("running cargo: {error}")),
        }
    }
    Ok(built)
}

/// The server in the environment, whichever Python made it.
fn tritonserver(installed: &Path) -> Result<PathBuf, Failure> {
    let folder = installed.join("lib");
    let pythons =
        std::fs::read_dir(&folder).map_err(|error| format!("listing {}: {error}", folder.display()))?;
    let server = |python: std::fs::DirEntry| {
        python.path().join("site-packages/pytriton/tritonserver/bin/tritonserver")
    };
    let found = pythons.flatten().map(server).find(|server| server.exists());
    found.ok_or_else(|| format!("there is no tritonserver in {}", folder.display()))
}

fn make(folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|error| format!("making {}: {error}", folder.display()))
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    std::fs::copy(from, to).map(drop).map_err(|error| format!("copying {}: {error}", from.display()))
}
