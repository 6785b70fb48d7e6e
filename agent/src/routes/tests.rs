use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::body::Format;
use crate::capture::Capture;
use crate::deploy::prove::prove;
use crate::scorer::Scorer;
use crate::settings::Settings;
use crate::vault::Verified;

const PATIENCE: Duration = Duration::from_secs(20);

fn route(input: &str, output: &str) -> Route {
    Route {
        broker: "mqtt://127.0.0.1".parse().unwrap(),
        input: input.to_owned(),
        model: "power-demand".parse().unwrap(),
        output: output.to_owned(),
        qos: 0,
        format: Format::Json,
    }
}

#[test]
fn routes_that_feed_themselves_are_refused() {
    for circle in [
        vec![route("a", "a")],
        vec![route("a/#", "a/out")],
        vec![route("a/error", "a")],
        vec![route("a", "b"), route("b", "a")],
        vec![route("x", "a"), route("a", "b"), route("b", "c"), route("+", "d")],
    ] {
        assert!(matches!(refuse_circles(&circle), Err(RouteError::Circle { .. })), "{circle:?}");
    }
    let chain = [route("a", "b"), route("b", "c"), route("a", "c")];
    assert!(refuse_circles(&chain).is_ok());
    let elsewhere = Route { broker: "mqtt://127.0.0.2".parse().unwrap(), ..route("b", "a") };
    assert!(refuse_circles(&[route("a", "b"), elsewhere]).is_ok(), "on another broker");
}

async fn broker() -> SocketAddr {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let connections = rumqttd::ConnectionSettings {
        connection_timeout_ms: 10_000,
        max_payload_size: 256 * 1024,
        max_inflight_count: 100,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = rumqttd::ServerSettings {
        name: "local".to_owned(),
        listen: address,
        tls: None,
        next_connection_delay_ms: 1,
        connections,
    };
    let router = rumqttd::RouterConfig {
        max_connections: 16,
        max_outgoing_packet_count: 200,
        max_segment_size: 512 * 1024,
        max_segment_count: 4,
        ..rumqttd::RouterConfig::default()
    };
    let v4 = Some(HashMap::from([("v4".to_owned(), server)]));
    let config = rumqttd::Config { router, v4, ..rumqttd::Config::default() };
    std::thread::spawn(move || drop(rumqttd::Broker::new(config).start()));
    while TcpStream::connect(address).await.is_err() {
        tokio::task::yield_now().await;
    }
    address
}

/// What a test sends and hears with.
struct Client {
    sender: session::Sender,
    events: mpsc::Receiver<Event>,
}

impl Client {
    async fn connect(broker: SocketAddr, hears: &str) -> Self {
        let options = session::Options {
            subscriptions: vec![(hears.to_owned(), Qos::AtMostOnce)],
            ..session::Options::new(format!("mqtt://{broker}").parse().unwrap(), "sensor")
        };
        let (sender, events, driver) = session::open(options).unwrap();
        tokio::spawn(driver.run(CancellationToken::new()));
        let mut client = Self { sender, events };
        assert!(matches!(client.event().await, Event::Connected));
        client
    }

    async fn event(&mut self) -> Event {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.unwrap().unwrap()
    }

    async fn hears_bytes(&mut self) -> (String, Bytes) {
        match self.event().await {
            Event::Message(message) => (message.topic, message.body),
            other => panic!("{other:?}"),
        }
    }

    async fn hears(&mut self) -> (String, Value) {
        let (topic, body) = self.hears_bytes().await;
        (topic, serde_json::from_slice(&body).unwrap())
    }

    async fn says(&self, topic: &str, body: impl AsRef<[u8]>) {
        let body = Bytes::copy_from_slice(body.as_ref());
        let message = Outgoing { topic: topic.to_owned(), body, qos: Qos::AtMostOnce, retain: false };
        self.sender.publish(message).await.unwrap();
    }
}

fn service() -> Service {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../modules/samples/power-demand/2");
    let settings = Settings {
        provider: engine::Provider::Tract,
        threads: 1,
        instances: 1,
        queue: 4,
        batching: Default::default(),
        tuning: Default::default(),
        collect: None,
    };
    let bundle = Verified::local(&sample).unwrap();
    let proven = prove(&bundle, &"power-demand".parse().unwrap(), 2, &settings, None).unwrap();
    let scorer = Scorer::default();
    scorer.swap(proven).unwrap();
    Service { scorer, capture: Capture::nowhere(), timeout: PATIENCE, tracer: Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_answered_in_order() {
    let broker = broker().await;
    let route = Route { broker: format!("mqtt://{broker}").parse().unwrap(), ..route("in/+", "out") };
    let routes = Routes::open(&[route], &"device".parse().unwrap(), service()).unwrap();
    let (source, sender) = (routes.source(), routes.brokers[0].sender.clone());
    let stop = CancellationToken::new();
    let running = tokio::spawn(routes.run(stop.clone()));
    let mut client = Client::connect(broker, "out/#").await;
    while !sender.is_online() {
        tokio::task::yield_now().await;
    }

    let readings: Vec<f32> = (0..24).map(|hour| (hour as f32 / 4.0).sin()).collect();
    for id in 0..10 {
        let message = json!({ "load": readings, "id": format!("m-{id}"), "unit": "kW" });
        client.says("in/meter", message.to_string()).await;
    }
    client.says("in/meter", "{").await;
    client.says("in/other", json!([readings, readings]).to_string()).await;
    for id in 0..10 {
        let (topic, answer) = client.hears().await;
        assert_eq!((topic.as_str(), &answer["request_id"]), ("out", &json!(format!("m-{id}"))));
        assert_eq!((&answer["model"], &answer["version"]), (&json!("power-demand"), &json!(2)));
        let class = answer["outputs"]["label"][0].as_u64().unwrap();
        let names = ["October to March", "April to September"];
        assert_eq!(answer["labels"], json!([names[usize::try_from(class).unwrap()]]));
    }
    let (topic, answer) = client.hears().await;
    assert_eq!(topic, "out/error");
    assert!(answer["error"].as_str().unwrap().starts_with("the body can't be read: EOF"), "{answer}");
    let (_, answer) = client.hears().await;
    assert_eq!(answer["outputs"]["probabilities"].as_array().unwrap().len(), 2, "an error stops nothing");

    let mut exposition = Exposition::default();
    source(&mut exposition);
    let metrics = exposition.into_text();
    for (name, count) in [("received", 12), ("answered", 11), ("failed", 1), ("dropped", 0), ("unsent", 0)] {
        let name = format!("edgewise_route_{name}_total{{");
        let line = metrics.lines().find(|line| line.starts_with(&name)).unwrap();
        assert!(line.ends_with(&format!(" {count}")), "{line}");
    }
    stop.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_answers_in_the_form_in_which_it_is_asked() {
    let broker = broker().await;
    let url: session::BrokerUrl = format!("mqtt://{broker}").parse().unwrap();
    let named = Format::NAMES.map(|(name, format)| (format!("in/{name}"), format!("out/{name}"), format));
    let route = |(input, output, format): &(String, String, Format)| Route {
        broker: url.clone(),
        format: *format,
        qos: 1,
        ..route(input, output)
    };
    let routes: Vec<_> = named.iter().map(route).collect();
    let routes = Routes::open(&routes, &"device".parse().unwrap(), service()).unwrap();
    let sender = routes.brokers[0].sender.clone();
    let stop = CancellationToken::new();
    let running = tokio::spawn(routes.run(stop.clone()));
    let mut client = Client::connect(broker, "out/#").await;
    while !sender.is_online() {
        tokio::task::yield_now().await;
    }

    let rows: Vec<f32> = (0..48).map(|hour| (hour as f32 / 4.0).sin()).collect();
    let body = json!({ "id": "two", "data": rows.chunks(24).collect::<Vec<_>>() });
    client.says("in/json", body.to_string()).await;
    let (_, asked) = client.hears().await;
    client.says("in/cbor", serde_cbor::to_vec(&body).unwrap()).await;
    let (topic, answer) = client.hears_bytes().await;
    assert_eq!(topic, "out/cbor");
    let answer: Value = serde_cbor::from_slice(&answer).unwrap();
    assert_eq!((&answer["request_id"], &answer["labels"]), (&asked["request_id"], &asked["labels"]));
    let raw: Vec<u8> = rows.iter().flat_map(|number| number.to_le_bytes()).collect();
    client.says("in/raw", &raw).await;
    let (topic, answer) = client.hears_bytes().await;
    assert_eq!(topic, "out/raw");
    // Two rows of two probabilities in 32 bits, and then of a label in 64.
    let label = |row: usize| i64::from_le_bytes(answer[16 + row * 8..][..8].try_into().unwrap());
    assert_eq!(json!([label(0), label(1)]), asked["outputs"]["label"]);
    assert_eq!(answer.len(), 2 * 8 + 4 * 4);
    client.says("in/raw", &raw[1..]).await;
    let (topic, answer) = client.hears().await;
    assert_eq!(topic, "out/raw/error");
    assert!(answer["error"].as_str().unwrap().contains("load: FP32 [-1, 24]"), "{answer}");
    stop.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
}
