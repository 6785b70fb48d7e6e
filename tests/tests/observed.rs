//! What others see of an agent: metrics that Prometheus reads and the dashboard shows, traces that a collector takes.

use std::time::Duration;

use cloud_sync::session::{self, BrokerUrl, Event, Options, Outgoing};
use cloud_sync::topic::Qos;
use e2e::client::Client;
use e2e::data::{self, MODEL};
use e2e::mosquitto::Mosquitto;
use e2e::process::{Agent, Failure};
use e2e::{files, python};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Nobody listens there: what tells of the cloud is exposed all the same.
const NO_CLOUD: &str = "mqtt://127.0.0.1:1";

/// The span of each caller, by the way in.
const HTTP: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const GRPC: &str = "00-1af7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01";
const MQTT: &str = "00-2af7651916cd43dd8448eb211c80319c-d7ad6b7169203331-01";
/// One that is not told of.
const UNSAMPLED: &str = "00-3af7651916cd43dd8448eb211c80319c-e7ad6b7169203331-00";

#[test]
fn the_dashboard_shows_what_an_agent_exposes() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/observed-metrics")?;
    let agent = Agent::start_local(&directory, &data::sample(Some(2)), &["--cloud", NO_CLOUD])?;
    let window = data::test_split()?.into_iter().next().ok_or("the test split is empty")?;
    Client::new(&agent.http).predict(&window)?;
    let dashboard = e2e::repository().join("modules/grafana.json").display().to_string();
    python::run("metrics.py", &[&format!("{}/metrics", agent.http), &dashboard]).map(drop)
}

#[test]
fn a_collector_gets_the_spans_of_every_way_in_under_their_callers() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/observed-traces")?;
    let mut collector = python::start("collector.py", &[], &[], &directory.join("collector.log"))?;
    let endpoint = collector.wait_for_line("ready")?.replace("ready ", "");
    let mosquitto = Mosquitto::start(&directory.join("mosquitto"))?;
    let bundle = data::sample(Some(2)).display().to_string();
    let config = directory.join("agent.toml");
    let text = format!(
        "device = \"bench\"\nlocal = \"{bundle}\"\n[trace]\nendpoint = \"{endpoint}\"\n\
         [[route]]\nbroker = \"{}\"\ninput = \"in\"\nmodel = \"{MODEL}\"\noutput = \"out\"\n",
        mosquitto.url
    );
    files::write(&config, text)?;
    let mut agent = Agent::start_configured(&directory.join("agent"), &config)?;

    let client = Client::new(&agent.http);
    let load = vec![0.5f32; 24];
    let body = json!({ "data": [load] }).to_string();
    let json = ("content-type", "application/json");
    client.send("POST", "/score", &[json, ("traceparent", UNSAMPLED)], body.as_bytes())?;
    client.get("/metrics")?;
    let address = agent.http.trim_start_matches("http://");
    python::run("traced.py", &[address, MODEL, HTTP, GRPC])?;
    client.send("POST", "/v2/models/none/infer", &[json], b"{}")?;
    over_mqtt(&mosquitto.url, &json!({ "data": [load], "traceparent": MQTT }).to_string())?;
    // What has not left by then leaves at the end.
    assert_eq!(agent.process.terminate()?, 0);

    for (parent, kind, name) in [
        (HTTP, "SPAN_KIND_SERVER", "POST /v2/models/{model}/infer"),
        (GRPC, "SPAN_KIND_SERVER", "inference.GRPCInferenceService/ModelInfer"),
        (MQTT, "SPAN_KIND_CONSUMER", "process in"),
    ] {
        if parent == MQTT {
            let failed = span(&mut collector)?;
            assert_eq!(failed["parent"], "", "{failed}");
            assert_eq!(failed["attributes"]["http.response.status_code"], 404, "{failed}");
        }
        let whole = span(&mut collector)?;
        let (trace, caller) = (&parent[3..35], &parent[36..52]);
        assert_eq!((&whole["trace"], &whole["parent"]), (&json!(trace), &json!(caller)), "{whole}");
        assert_eq!((&whole["kind"], &whole["name"]), (&json!(kind), &json!(name)), "{whole}");
        assert_eq!(whole["failed"], false, "{whole}");
        assert_eq!(whole["state"], if parent == MQTT { "" } else { "edgewise=test" }, "{whole}");
        assert_eq!(whole["attributes"]["edgewise.model.name"], MODEL, "{whole}");
        assert_eq!(whole["resource"]["service.name"], "edgewise-agent", "{whole}");
        assert_eq!(whole["resource"]["device.id"], "bench", "{whole}");
        let mut after = whole["start"].as_u64();
        for part in ["queue", "compute", "capture"] {
            let told = span(&mut collector)?;
            assert_eq!((&told["name"], &told["trace"]), (&json!(part), &whole["trace"]), "{told}");
            assert_eq!(
                (&told["parent"], &told["kind"]),
                (&whole["span"], &json!("SPAN_KIND_INTERNAL")),
                "{told}"
            );
            let (start, end) = (told["start"].as_u64(), told["end"].as_u64());
            assert!(after <= start && start <= end && end <= whole["end"].as_u64(), "{told} in {whole}");
            after = end;
        }
    }
    Ok(())
}

fn span(collector: &mut e2e::process::Process) -> Result<Value, Failure> {
    let line = collector.wait_for_line("trace")?;
    serde_json::from_str(&line).map_err(|error| format!("{line}: {error}"))
}

/// Publishes on `in`, and waits for what comes on `out`.
fn over_mqtt(broker: &str, body: &str) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let broker: BrokerUrl = broker.parse().map_err(|error| format!("{broker}: {error}"))?;
    let options = Options {
        subscriptions: vec![("out".to_owned(), Qos::AtMostOnce)],
        ..Options::new(broker, "sensor")
    };
    let asked =
        Outgoing { topic: "in".into(), body: body.to_owned().into(), qos: Qos::AtMostOnce, retain: false };
    let talk = async {
        let (sender, mut events, driver) = session::open(options).map_err(|error| error.to_string())?;
        tokio::spawn(driver.run(CancellationToken::new()));
        loop {
            match events.recv().await {
                Some(Event::Connected) => {
                    sender.publish(asked.clone()).await.map_err(|error| error.to_string())?;
                }
                Some(Event::Message(_)) => return Ok(()),
                Some(Event::Disconnected(_)) => {}
                None => return Err("the session has ended".to_owned()),
            }
        }
    };
    let talk = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), talk).await });
    talk.map_err(|_| "no answer came".to_owned())?
}
