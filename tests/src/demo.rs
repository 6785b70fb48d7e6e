//! The demo: register → deploy → pull → prove → score → swap → collect → export, with the real programs.
//!
//! Every step is verified, and the first that is not as it should be ends the demo with a failure.

mod narrate;
mod stream;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::data::{self, MODEL, Window};
use crate::files;
use crate::flow::Background;
use crate::process::{Agent, Cloud, Failure, wait_until};
use narrate::{bytes, fact, step, thousands};
use stream::Score;

/// The device of the demo.
const DEVICE: &str = "demo-device";

/// Runs the demo; with `stay` it goes on serving until it is interrupted.
pub fn run(stay: bool) -> Result<(), Failure> {
    build()?;
    let begun = Instant::now();
    let directory = crate::fresh_directory("demo")?;
    let windows = data::test_split()?;
    let labels = data::labels()?;
    let (mut cloud, mut agent) = start(&directory)?;

    step(1, "Register version 1 of a real model, deploy it, let the device pull and prove it");
    let first = bring(&cloud, 1)?;
    verify(number(&first, "fetched_bytes") > 0, "version 1 came without a byte over the wire")?;

    step(2, "Stream held-out sensor windows to the agent, over HTTP and over a local MQTT route");
    fact(&format!(
        "{} days of electric load, 24 hourly readings each; which half of the year is it?",
        thousands(windows.len() as u64)
    ));
    let before = stream::over_http(&agent.http, &windows, &labels, 1)?;
    let over_mqtt = stream::over_mqtt(&cloud.mqtt, &windows, 1)?;

    step(3, "Deploy version 2 while requests keep flowing");
    let background = Background::start(&agent.http, &windows);
    background.wait_for(1, 200)?;
    let second = bring(&cloud, 2)?;
    background.wait_for(2, 200)?;
    let flowed = background.stop()?;
    verify(
        flowed.failed == 0,
        &format!("{} requests failed during the swap: {}", flowed.failed, flowed.why),
    )?;
    verify(flowed.of(1) > 0 && flowed.of(2) > 0, "one version never answered")?;
    fact(&format!(
        "{} requests flowed meanwhile, {} answered by version 1, then {} by version 2; none failed or was dropped",
        thousands(flowed.total()),
        thousands(flowed.of(1)),
        thousands(flowed.of(2)),
    ));
    let saved = number(&second, "shared_bytes");
    verify(saved > 0, "version 2 shared no chunk with version 1")?;
    let after = stream::over_http(&agent.http, &windows, &labels, 2)?;
    verify(after.accuracy() > before.accuracy(), "version 2 is no better than version 1")?;
    fact(&format!(
        "accuracy on the same days: {:.1} % before, {:.1} % after",
        before.percent(),
        after.percent()
    ));

    step(4, "Collect: upload what was captured, account for every row, export it");
    let captured = over_mqtt.total + before.total + after.total + flowed.total();
    collect(&cloud, &directory, captured)?;

    fact(&format!("done in {:.0} s; everything above was verified", begun.elapsed().as_secs_f64()));
    if stay {
        linger(&cloud, &agent, &directory)?;
    }
    let ended = agent.process.terminate()?;
    verify(ended == 0, &format!("edgewise-agent ended with code {ended}"))?;
    let ended = cloud.process.terminate()?;
    verify(ended == 0, &format!("edgewise serve ended with code {ended}"))
}

/// Builds the programs, as the demo itself was built.
fn build() -> Result<(), Failure> {
    // Set by `cargo run`; without it the programs were built by whoever started the demo.
    let Ok(cargo) = std::env::var("CARGO") else { return Ok(()) };
    let build = Command::new(cargo).args(["build", "--quiet", "--workspace", "--bins"]).status();
    let built = build.map_err(|error| format!("running cargo build: {error}"))?;
    verify(built.success(), "the programs could not be built")
}

/// Starts the cloud and one agent, on the usual ports where these are free.
fn start(directory: &Path) -> Result<(Cloud, Agent), Failure> {
    let usual = |port: u16| match std::net::TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => port,
        Err(_) => 0,
    };
    let cloud = Cloud::start(&directory.join("cloud"), usual(8080), usual(1883), &[])?;
    let config = directory.join("agent.toml");
    let route = format!(
        "[[route]]\nbroker = \"{}\"\ninput = \"{}\"\nmodel = \"{MODEL}\"\noutput = \"{}\"\n",
        cloud.mqtt,
        stream::SENSOR,
        stream::PREDICTION
    );
    std::fs::write(&config, route).map_err(|error| format!("writing {}: {error}", config.display()))?;
    let more = ["--config", &config.display().to_string()];
    let agent = Agent::start(&directory.join("agent"), DEVICE, &cloud.mqtt, usual(8000), &more)?;
    narrate::title("Edgewise demo");
    fact(&format!("cloud:  edgewise serve      {}  {}", cloud.http, cloud.mqtt));
    fact(&format!("device: edgewise-agent run  {}", agent.http));
    Ok((cloud, agent))
}

/// Registers a version, deploys it, waits until it serves; gives what the transfer took.
fn bring(cloud: &Cloud, version: u64) -> Result<Value, Failure> {
    let bundle = data::sample(Some(version)).display().to_string();
    let registered = cloud.text(&["model", "register", &bundle, "--name", MODEL, "--tag", "source=demo"])?;
    fact(&format!("edgewise model register → {}", registered.lines().next().unwrap_or_default()));
    let name = format!("{MODEL}:{version}");
    verify(registered.starts_with(&name), &format!("registering gave {registered:?}, not {name}"))?;
    cloud.text(&["deploy", &name, "--device", DEVICE])?;
    let model = cloud.wait_for_phase(DEVICE, MODEL, version, "active")?;
    let transfer = wait_until(Duration::from_secs(10), || {
        let transfer = cloud.model_on(DEVICE, MODEL)?["transfer"].clone();
        if number(&transfer, "swap_us") > 0 {
            Ok(transfer)
        } else {
            Err("the swap is not reported".to_owned())
        }
    })?;
    let text = |key: &str| model[key].as_str().unwrap_or("?").to_owned();
    fact(&format!(
        "pulled over MQTT in chunks: {} over the wire, {} saved by chunks already here, in {} ms",
        bytes(number(&transfer, "fetched_bytes")),
        bytes(number(&transfer, "shared_bytes")),
        number(&transfer, "fetch_ms"),
    ));
    fact(&format!(
        "proved on its golden samples in {} ms on {} ({}), then swapped in within {} µs",
        number(&transfer, "proof_ms"),
        text("engine"),
        text("provider"),
        number(&transfer, "swap_us"),
    ));
    Ok(transfer)
}

/// Uploads, checks the ledger against what was scored, exports and checks the files.
fn collect(cloud: &Cloud, directory: &Path, captured: u64) -> Result<(), Failure> {
    let flushed = cloud.json(&["command", DEVICE, "flush", "--timeout", "60s"])?;
    let ledger = &flushed["result"];
    let dropped: u64 =
        ledger["dropped"].as_object().into_iter().flatten().filter_map(|(_, rows)| rows.as_u64()).sum();
    let (all, uploaded) = (number(ledger, "captured"), number(ledger, "uploaded"));
    let (held, lost) = (number(ledger, "held"), number(ledger, "lost"));
    fact(&format!(
        "loss ledger: {} captured = {} uploaded + {held} held + {dropped} dropped + {lost} lost",
        thousands(all),
        thousands(uploaded)
    ));
    verify(all == uploaded + held + dropped + lost, "the ledger does not add up")?;
    verify(all == captured, &format!("{captured} rows were scored, {all} were captured"))?;

    let mut files = Vec::new();
    for format in ["csv", "parquet"] {
        let output = directory.join("export").join(format);
        let path = output.display().to_string();
        cloud.text(&["data", "export", "--model", MODEL, "--format", format, "-o", &path])?;
        let found = files::below(&output)?;
        verify(!found.is_empty(), &format!("no {format} file was exported"))?;
        files.push(found);
    }
    let [csv, parquet] = files.as_slice() else { return Err("two exports were expected".to_owned()) };
    let inputs: Vec<&PathBuf> = csv.iter().filter(|path| path.ends_with("inputs.csv")).collect();
    let mut rows = 0;
    for path in &inputs {
        rows += files::read(path)?.lines().skip(1).count() as u64;
    }
    verify(rows == uploaded, &format!("{uploaded} rows were uploaded, {rows} are in the CSV files"))?;
    let mut in_parquet = 0;
    for path in parquet {
        in_parquet += parquet_rows(path)?;
    }
    verify(
        in_parquet == uploaded,
        &format!("{uploaded} rows were uploaded, {in_parquet} are in the Parquet files"),
    )?;
    let predictions = csv.iter().find(|path| path.ends_with("predictions.csv"));
    for path in inputs.first().into_iter().copied().chain(predictions) {
        fact(&format!("{}", path.display()));
        files::read(path)?.lines().take(3).for_each(narrate::row);
    }
    fact(&format!("{} rows in {} CSV and {} Parquet files:", thousands(rows), csv.len(), parquet.len()));
    fact(&format!("  {}", directory.join("export").display()));
    Ok(())
}

fn linger(cloud: &Cloud, agent: &Agent, directory: &Path) -> Result<(), Failure> {
    let edgewise = crate::process::program("edgewise");
    let example = data::test_split()?;
    let Window { load, .. } = example.first().ok_or("the test split is empty")?;
    let load = serde_json::to_string(load).map_err(|error| error.to_string())?;
    narrate::title("Still running; Ctrl-C ends it. Try:");
    println!(
        "  curl -s {url}/v2/models/{MODEL}\n  \
           curl -s {url}/score -H 'content-type: application/json' -d '{{\"data\": [{load}]}}'\n  \
           curl -s {url}/metrics | grep edgewise_\n\n  \
           export EDGEWISE_URL={cloud}\n  \
           {edgewise} device show {DEVICE}\n  \
           {edgewise} command {DEVICE} rollback --arg model={MODEL}\n  \
           {edgewise} model list\n\n  \
           pip install 'tritonclient[http]' && python3 - <<'END'\n\
           import numpy, tritonclient.http as triton\n\
           client = triton.InferenceServerClient('{host}')\n\
           load = triton.InferInput('load', [1, 24], 'FP32')\n\
           load.set_data_from_numpy(numpy.array([{load}], dtype=numpy.float32))\n\
           print(client.infer('{MODEL}', [load]).as_numpy('probabilities'))\n\
           END\n\n  logs: {directory}/cloud/serve.log {directory}/agent/agent.log\n",
        url = agent.http,
        host = agent.http.trim_start_matches("http://"),
        cloud = cloud.http,
        edgewise = edgewise.display(),
        directory = directory.display(),
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(tokio::signal::ctrl_c()).map_err(|error| error.to_string())
}

fn verify(holds: bool, otherwise: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

fn parquet_rows(path: &Path) -> Result<u64, Failure> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let wrong = |error: &dyn std::fmt::Display| format!("reading {}: {error}", path.display());
    let file = std::fs::File::open(path).map_err(|error| wrong(&error))?;
    let reader = SerializedFileReader::new(file).map_err(|error| wrong(&error))?;
    u64::try_from(reader.metadata().file_metadata().num_rows()).map_err(|error| wrong(&error))
}

impl Score {
    fn percent(&self) -> f64 {
        self.accuracy() * 100.0
    }
}
