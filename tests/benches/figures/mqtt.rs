//! A score over MQTT, there and back, against an echo by a bare client that asks the engine directly, on the same broker.

use std::path::Path;
use std::time::Duration;

use e2e::data::MODEL;
use e2e::files;
use e2e::mosquitto::Mosquitto;
use e2e::process::{Agent, Failure, Process};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::runtime::Runtime;

use crate::measure::{Unit, compare, in_turns, skipped, timed};
use crate::sample;
use crate::work::Work;

/// The word that makes this program the echo; the broker's port, QoS and the library of ONNX Runtime follow.
pub(crate) const ECHO: &str = "echo";

/// Turns of so many round trips: a few seconds.
const TURNS: usize = 20;
/// See [`TURNS`].
const ROUND_TRIPS: usize = 500;

/// Longest that one may take.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn measure(directory: &Path) -> Result<(), Failure> {
    let Some(library) = sample::library() else {
        skipped("MQTT", "there is no ONNX Runtime here; run cross/onnxruntime");
        return Ok(());
    };
    let library = library.display().to_string();
    let directory = directory.join("mqtt");
    let broker = match Mosquitto::start(&directory.join("broker")) {
        Ok(broker) => broker,
        Err(why) => {
            skipped("MQTT", &why);
            return Ok(());
        }
    };
    let port = broker.url.rsplit(':').next().unwrap_or_default().to_owned();
    let body = serde_json::json!({ "data": [sample::window()?] }).to_string();
    for qos in ["0", "1"] {
        let config = directory.join(format!("agent-{qos}.toml"));
        let text = format!(
            "device = \"bench-{qos}\"\nlocal = \"{}\"\n[engine]\nprovider = \"cpu\"\nonnxruntime = \"{library}\"\n[[route]]\n\
             broker = \"{}\"\ninput = \"ours/in\"\nmodel = \"{MODEL}\"\noutput = \"ours/out\"\nqos = {qos}\n",
            sample::bundle().display(),
            broker.url
        );
        files::write(&config, text)?;
        let _agent = Agent::start_configured(&directory.join(qos), &config)?;
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let log = directory.join("echo.log");
        let mut echo = Process::start_program(&program, ECHO, [ECHO, &port, qos, &library], &[], &log)?;
        echo.wait_for_line("ready")?;
        let (mut ours, mut theirs) =
            (Asker::connect(&port, "ours", qos)?, Asker::connect(&port, "theirs", qos)?);
        let compared = in_turns(
            TURNS,
            || timed(ROUND_TRIPS, || ours.ask(&body)),
            || timed(ROUND_TRIPS, || theirs.ask(&body)),
        )?;
        let figure = format!("{MODEL}, MQTT at QoS {qos}, {} bytes, p50", body.len());
        compare(&figure, Unit::Microseconds, "an echo by rumqttc that asks the engine", compared);
    }
    Ok(())
}

/// Echoes what comes, after it was scored, until it is ended.
pub(crate) fn echo(arguments: &[String]) -> Result<(), Failure> {
    let [port, qos, library] = arguments else { return Err("a port, QoS and a library".to_owned()) };
    let work = Work::sample()?;
    let mut engine = sample::engine_from(&work, Path::new(library))?;
    let inputs = work.tensors()?;
    let qos = level(qos);
    runtime()?.block_on(async {
        let (client, mut events) = open(port, "echo")?;
        subscribe(&client, &mut events, "theirs/in", qos).await?;
        println!("ready");
        loop {
            if let Event::Incoming(Packet::Publish(message)) =
                events.poll().await.map_err(|error| error.to_string())?
            {
                engine.score(&inputs).map_err(|error| error.to_string())?;
                let echoed = client.publish_bytes("theirs/out", qos, false, message.payload).await;
                echoed.map_err(|error| error.to_string())?;
            }
        }
    })
}

/// Who asks, and waits for the answer.
struct Asker {
    runtime: Runtime,
    client: AsyncClient,
    events: EventLoop,
    topic: String,
    qos: QoS,
}

impl Asker {
    fn connect(port: &str, whom: &str, qos: &str) -> Result<Self, Failure> {
        let (runtime, qos) = (runtime()?, level(qos));
        let (client, mut events) = runtime.block_on(async { open(port, &format!("asks-{whom}")) })?;
        runtime.block_on(subscribe(&client, &mut events, &format!("{whom}/out"), qos))?;
        Ok(Self { runtime, client, events, topic: format!("{whom}/in"), qos })
    }

    fn ask(&mut self, body: &str) -> Result<(), Failure> {
        let Self { runtime, client, events, topic, qos } = self;
        let asking = async {
            client.publish(topic.as_str(), *qos, false, body).await.map_err(|error| error.to_string())?;
            loop {
                let event = events.poll().await.map_err(|error| error.to_string())?;
                if matches!(event, Event::Incoming(Packet::Publish(_))) {
                    return Ok(());
                }
            }
        };
        runtime
            .block_on(async { tokio::time::timeout(PATIENCE, asking).await })
            .map_err(|_| format!("nothing came back from {topic} within {PATIENCE:?}"))?
    }
}

fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())
}

fn open(port: &str, name: &str) -> Result<(AsyncClient, EventLoop), Failure> {
    let port = port.parse().map_err(|error| format!("{port}: {error}"))?;
    let (client, mut events) = AsyncClient::new(MqttOptions::new(name, "127.0.0.1", port), 16);
    let mut network = events.network_options();
    network.set_tcp_nodelay(true);
    events.set_network_options(network);
    Ok((client, events))
}

async fn subscribe(
    client: &AsyncClient,
    events: &mut EventLoop,
    topic: &str,
    qos: QoS,
) -> Result<(), Failure> {
    client.subscribe(topic, qos).await.map_err(|error| error.to_string())?;
    loop {
        if let Event::Incoming(Packet::SubAck(_)) = events.poll().await.map_err(|error| error.to_string())? {
            return Ok(());
        }
    }
}

fn level(qos: &str) -> QoS {
    if qos == "0" { QoS::AtMostOnce } else { QoS::AtLeastOnce }
}
