//! The whole of a server, driven through its two doors: HTTP as the command line does, MQTT as a device does.

use std::path::Path;

use cloud_sync::bundle::{BundlePath, Manifest};
use cloud_sync::contract::{
    self, AgentInfo, Chunk, Command, Desired, Fetch, Hardware, Ledger, Message, Phase, Presence, Receipt,
    Reply, Reported, ReportedModel, Telemetry, Want,
};
use cloud_sync::name::DeviceId;
use cloud_sync::session::{Event, Outgoing};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};

use super::*;
use crate::api::{
    CommandReply, CommandRequest, DeployRequest, Deployed, DeviceRecord, ModelPage, ModelRecord, Registered,
};
use crate::cli::CliError;
use crate::client::Client;
use crate::sink::tests::{batch, encoded};

const PATIENCE: Duration = Duration::from_secs(30);

struct Server {
    ready: Ready,
    stop: CancellationToken,
    running: JoinHandle<Result<(), ServeError>>,
}

fn options(data: &Path) -> Options {
    Options {
        data: data.to_owned(),
        http: "127.0.0.1:0".parse().unwrap(),
        broker: Broker::Embedded("127.0.0.1:0".parse().unwrap()),
        database: None,
        storage: None,
        authority: None,
        token_file: None,
        root: Root::default(),
        onnxruntime: None,
    }
}

impl Server {
    async fn start(options: Options) -> Self {
        let filter = tracing_subscriber::EnvFilter::try_from_env("EDGEWISE_LOG").unwrap_or_default();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let stop = CancellationToken::new();
        let (tell, told) = oneshot::channel();
        let serving = serve(options, stop.clone(), move |ready| tell.send(ready.clone()).unwrap());
        let running = tokio::spawn(serving);
        Self { ready: told.await.expect("the server is ready"), stop, running }
    }

    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(Client) -> Result<T, CliError> + Send + 'static,
    ) -> Result<T, CliError> {
        let client = Client::new(&format!("http://{}", self.ready.http), None);
        spawn_blocking(move || call(client)).await.unwrap()
    }

    async fn register(&self, directory: &Path) -> Result<Registered, CliError> {
        let directory = directory.to_owned();
        self.call(move |client| {
            let bundle = cloud_sync::bundle::Bundle::open(&directory).unwrap();
            let tags = [("tag", "stage=test".to_owned()), ("property", "commit=a=b".to_owned())];
            client.register("relu", &tags, &bundle, |_| {})
        })
        .await
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.running).await.unwrap().unwrap().unwrap();
    }
}

/// A device, as far as the wire knows one.
struct Device {
    id: DeviceId,
    sender: session::Sender,
    events: mpsc::Receiver<Event>,
}

impl Device {
    async fn connect(server: &Server) -> Self {
        let id: DeviceId = "gateway-1".parse().unwrap();
        let (sender, events, driver) = session::open(session::Options {
            subscriptions: Root::default().of_device(&id),
            ..session::Options::new(server.ready.mqtt.clone(), id.as_str())
        })
        .unwrap();
        tokio::spawn(driver.run(CancellationToken::new()));
        let mut device = Self { id, sender, events };
        while !matches!(device.event("connected").await, Event::Connected) {}
        let presence = Presence { online: true, boot_id: "b".into(), agent_version: "0.1.0".into() };
        device.send(&presence).await;
        device
    }

    async fn event(&mut self, wanted: &str) -> Event {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.unwrap_or_else(|_| panic!("no {wanted} in {PATIENCE:?}")).unwrap()
    }

    async fn send<M: Message>(&self, message: &M) {
        let topic = Root::default().topic(&self.id, M::KIND);
        let body = contract::encode(message).unwrap().into();
        self.sender
            .publish(Outgoing { topic, body, qos: M::KIND.qos(), retain: M::KIND.retained() })
            .await
            .unwrap();
    }

    async fn receive<M: Message>(&mut self) -> M {
        let topic = Root::default().topic(&self.id, M::KIND);
        loop {
            if let Event::Message(message) = self.event(M::KIND.as_str()).await
                && message.topic == topic
            {
                return contract::decode(&message.body).unwrap();
            }
        }
    }

    /// Pulls a whole object, piece by piece.
    async fn pull(&mut self, digest: Digest) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            self.send(&Fetch { wants: vec![Want { digest, offset: bytes.len() as u64 }] }).await;
            let chunk: Chunk = self.receive().await;
            assert_eq!((chunk.digest, chunk.offset), (digest, bytes.len() as u64));
            bytes.extend_from_slice(&chunk.bytes);
            if bytes.len() as u64 >= chunk.total {
                assert_eq!(Digest::of(&bytes), digest);
                return bytes;
            }
        }
    }

    async fn report(&self, desired: &Desired) {
        let model = desired.models.first().unwrap();
        let model = ReportedModel {
            name: model.name.clone(),
            version: model.version,
            phase: Phase::Active,
            why: None,
            active: Some(model.version),
            previous: None,
            engine: Some("tract".into()),
            provider: Some("tract".into()),
            memory_bytes: Some(1),
            transfer: None,
        };
        self.send(&Reported {
            revision: desired.revision,
            models: vec![model],
            agent: AgentInfo { version: "0.1.0".into(), boot_id: "b".into(), state: "running".into() },
            hardware: Hardware::default(),
            ledger: Ledger { captured: 5, held: 5, ..Ledger::default() },
        })
        .await;
    }
}

/// One field of a protocol buffer message: bytes, or a number.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 128);
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

fn number(field: u8, value: u8) -> Vec<u8> {
    vec![field << 3, value]
}

/// An ONNX file: y = relu(x), both FP32 [1, 2].
fn relu(operator: &str) -> Vec<u8> {
    let dimension = |length| field(1, &number(1, length));
    let shape = [dimension(1), dimension(2)].concat();
    let tensor_type = field(1, &[number(1, 1), field(2, &shape)].concat());
    let value = |name: &str| [field(1, name.as_bytes()), field(2, &tensor_type)].concat();
    let node = [field(1, b"x"), field(2, b"y"), field(4, operator.as_bytes())].concat();
    let graph = [field(1, &node), field(2, b"g"), field(11, &value("x")), field(12, &value("y"))].concat();
    [number(1, 8), field(7, &graph), field(8, &[field(1, b""), number(2, 13)].concat())].concat()
}

/// A bundle of several chunks with golden samples; the second output is `second`.
fn bundle(directory: &Path, operator: &str, second: f32) {
    std::fs::create_dir_all(directory).unwrap();
    let tensor =
        |name: &str, data: [f32; 2]| json!({"name": name, "shape": [1, 2], "datatype": "FP32", "data": data});
    let golden =
        json!({"samples": [{"inputs": [tensor("x", [-1.0, 2.0])], "outputs": [tensor("y", [0.0, second])]}]});
    std::fs::write(directory.join("model.onnx"), relu(operator)).unwrap();
    std::fs::write(directory.join("golden.json"), golden.to_string()).unwrap();
    let description =
        "[model]\ndescription = \"no negatives\"\nframework = \"hand\"\n[golden]\nfile = \"golden.json\"\n";
    std::fs::write(directory.join("model.toml"), description).unwrap();
    let noise: Vec<u8> =
        (0..100_000u32).flat_map(|i| Digest::of(&i.to_le_bytes()).as_bytes()[..2].to_vec()).collect();
    std::fs::write(directory.join("asset.bin"), noise).unwrap();
}

#[test]
fn a_database_that_is_a_file_is_held_by_one_whatever_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("my data, 100%?");
    std::fs::create_dir(&data).unwrap();
    let url = format!("sqlite:{}", escaped(&data.join("edgewise.db")));
    let held = hold(&url).unwrap();
    assert!(held.is_some() && data.join("edgewise.db.lock").exists());
    assert!(matches!(hold(&url), Err(ServeError::Usage(_))));
    drop(held);
    assert!(hold(&url).unwrap().is_some());
    assert!(hold("postgres://host/database").unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_goes_down_and_rows_come_up_once() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let source = directory.path().join("relu");
    bundle(&source, "Relu", 2.0);
    let server = Server::start(options(&data)).await;

    let first = server.register(&source).await.unwrap();
    assert_eq!((first.model.id.as_str(), first.new_bytes), ("relu:1", first.model.size));
    assert!(first.chunks > 5 && first.model.engines.iter().any(|engine| engine.verified), "{first:?}");
    let again = server.register(&source).await.unwrap();
    assert_eq!(
        (again.model.version, again.new_bytes, again.model.digest),
        (2, 0, first.model.digest.clone())
    );

    let mut device = Device::connect(&server).await;
    let request = DeployRequest {
        name: "relu".into(),
        version: 1,
        devices: vec!["gateway-1".into()],
        settings: Default::default(),
    };
    let deployed: Deployed =
        server.call(move |client| client.post("/api/deployments", &request, PATIENCE)).await.unwrap();
    let desired: Desired = device.receive().await;
    assert_eq!(desired.revision, deployed.devices[0].revision);
    assert_eq!(desired.models[0].digest.to_string(), first.model.digest);

    let manifest = Manifest::decode(&device.pull(desired.models[0].digest).await).unwrap();
    assert_eq!(manifest.size(), desired.models[0].size);
    let mut chunks = std::collections::HashMap::new();
    for chunk in manifest.distinct_chunks() {
        chunks.insert(chunk.digest, device.pull(chunk.digest).await);
    }
    let onnx = BundlePath::new("model.onnx").unwrap();
    let pulled = manifest
        .assemble(&onnx, |chunk| Ok::<_, cloud_sync::bundle::BundleError>(chunks[&chunk.digest].clone()));
    assert_eq!(pulled.unwrap(), relu("Relu"));

    let rows = || batch(1, encoded(0..5));
    for _ in 0..2 {
        device.send::<Telemetry>(&rows()).await;
        let receipt: Receipt = device.receive().await;
        assert_eq!(receipt, Receipt { stream: "s1".into(), durable_through: 5, again: false });
    }
    // As if it had missed what it was told.
    device.report(&Desired { revision: desired.revision - 1, ..desired.clone() }).await;
    assert_eq!(device.receive::<Desired>().await, desired);
    device.report(&desired).await;

    let ask =
        CommandRequest { name: "ping".into(), arguments: Default::default(), timeout_seconds: Some(20) };
    let asked = server
        .call(move |client| client.post::<CommandReply>("/api/devices/gateway-1/commands", &ask, PATIENCE));
    let answer = async {
        let command: Command = device.receive().await;
        device.send(&Reply { id: command.id, status: 200, result: json!({"pong": command.name}) }).await;
    };
    let (reply, ()) = tokio::join!(asked, answer);
    assert_eq!(reply.unwrap().result, json!({"pong": "ping"}));

    // Replies come after reports on the same connection, but are kept on another queue.
    let shown = loop {
        let record: DeviceRecord =
            server.call(|client| client.get("/api/devices/gateway-1", &[])).await.unwrap();
        if record.reported_revision.is_some() {
            break record;
        }
        tokio::task::yield_now().await;
    };
    assert!(shown.online && shown.models[0].active == Some(1) && shown.ledger.unwrap().held == 5);
    let held = server.call(|client| client.delete("/api/models/relu/versions/1", &[])).await;
    assert!(matches!(&held, Err(CliError::Refused(why)) if why.contains("gateway-1 (active)")), "{held:?}");

    let exported = server.call(|client| {
        let query = [("model", "load".to_owned()), ("format", "csv".to_owned())];
        let mut rows = 0;
        let mut tar = tar::Archive::new(client.download("/api/data/export", &query)?);
        for entry in tar.entries().unwrap() {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry.unwrap(), &mut text).unwrap();
            rows += text.lines().filter(|line| line.contains(",gateway-1,load,2,")).count();
        }
        Ok(rows)
    });
    assert_eq!(exported.await.unwrap(), 2 * 5, "each row once as input and once as prediction");
    server.end().await;

    // The embedded broker has forgotten everything; the registry has not.
    let server = Server::start(options(&data)).await;
    let mut device = Device::connect(&server).await;
    assert_eq!(device.receive::<Desired>().await, desired);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_good_gets_no_version() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(options(&directory.path().join("data"))).await;
    let source = |name: &str| directory.path().join(name);
    bundle(&source("wrong"), "Relu", 2.5);
    bundle(&source("unknown"), "Frobnicate", 2.0);
    bundle(&source("cut"), "Relu", 2.0);
    std::fs::write(source("cut").join("model.onnx"), &relu("Relu")[..40]).unwrap();
    bundle(&source("good"), "Relu", 2.0);
    for (name, words) in [("wrong", "element 1"), ("unknown", "Frobnicate"), ("cut", "ONNX")] {
        let refused = server.register(&source(name)).await;
        assert!(
            matches!(&refused, Err(CliError::Refused(why)) if why.contains(words)),
            "{name}: {refused:?}"
        );
    }
    assert_eq!(server.register(&source("good")).await.unwrap().model.id, "relu:1");

    let page = server.call(|client| {
        let query = [("tags", "stage=test".to_owned()), ("properties", "commit=a=b".to_owned())];
        client.get::<ModelPage>("/api/models", &query)
    });
    assert_eq!(page.await.unwrap().models.len(), 1);
    let latest: ModelRecord =
        server.call(|client| client.get("/api/models/relu/versions/latest", &[])).await.unwrap();
    assert_eq!(latest.signature.inputs[0].shape, [1, 2]);
    let change = json!({"properties": {"commit": "other"}});
    let changed =
        server.call(move |client| client.patch::<ModelRecord>("/api/models/relu/versions/1", &change));
    assert!(matches!(changed.await, Err(CliError::Refused(_))));
    let foreign = server.call(|client| client.get::<ModelRecord>("/api/models/relu/versions/9", &[])).await;
    assert!(matches!(foreign, Err(CliError::NotFound(_))));

    server.call(|client| client.delete("/api/models/relu/versions/1", &[])).await.unwrap();
    let next = server.register(&source("good")).await.unwrap();
    assert_eq!(next.model.id, "relu:2", "a number is not given again");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for_and_an_open_address_needs_one() {
    let directory = tempfile::tempdir().unwrap();
    let open = Options { http: "0.0.0.0:0".parse().unwrap(), ..options(directory.path()) };
    let refused = serve(open, CancellationToken::new(), |_| {}).await;
    assert!(matches!(&refused, Err(ServeError::Usage(why)) if why.contains("--token-file")), "{refused:?}");

    let file = directory.path().join("token");
    std::fs::write(&file, "0123456789abcdef\n").unwrap();
    let server =
        Server::start(Options { token_file: Some(file), ..options(&directory.path().join("data")) }).await;
    let url = format!("http://{}", server.ready.http);
    let list = async |token: Option<&'static str>| {
        let client = Client::new(&url, token);
        spawn_blocking(move || client.get::<ModelPage>("/api/models", &[])).await.unwrap()
    };
    assert!(list(Some("0123456789abcdef")).await.is_ok());
    for wrong in [None, Some("0123456789abcdeF")] {
        assert!(matches!(list(wrong).await, Err(CliError::Failed(why)) if why.contains("EDGEWISE_TOKEN")));
    }
    server.end().await;
}
