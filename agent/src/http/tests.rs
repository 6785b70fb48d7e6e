use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{DataType, Model, ScoreError, Signature, TensorSpec, Tensors};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::*;
use crate::capture::Capture;
use crate::deploy::prove::prove;
use crate::exposition::{Exposition, Kind};
use crate::scorer::{Facts, Proven, Scorer};
use crate::settings::Settings;
use crate::vault::Verified;

/// A server of its own runtime, and a client.
struct Served {
    runtime: Runtime,
    scorer: Scorer,
    readiness: watch::Sender<Readiness>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), String>>,
    address: SocketAddr,
    probe: Probe,
    client: ureq::Agent,
}

struct Answered {
    status: u16,
    headers: axum::http::HeaderMap,
    body: Vec<u8>,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

fn options() -> Options {
    Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        grpc: Grpc::Nowhere,
        socket: None,
        keys: None,
        max_body_bytes: 100_000,
        max_held_bytes: 100_000,
        max_connections: 16,
        read_timeout: Duration::from_secs(20),
        score_model: None,
        cors_origins: vec!["https://plant.example".to_owned()],
    }
}

impl Served {
    fn new(options: Options, timeout: Duration) -> Self {
        let runtime = Runtime::new().unwrap();
        let scorer = Scorer::default();
        let service = Service {
            scorer: scorer.clone(),
            capture: Capture::nowhere(),
            timeout,
            tracer: Default::default(),
        };
        let (readiness, ready) = watch::channel(Readiness::starting());
        let metrics: Source = Arc::new(|exposition: &mut Exposition| {
            exposition.family("agent_up", Kind::Gauge, "Whether it is.").sample(&[], 1);
        });
        let server = runtime.block_on(Server::bind(options, service, ready, metrics)).unwrap();
        let (address, probe) = (server.local_address(), server.probe());
        let stop = CancellationToken::new();
        let running = runtime.spawn(server.run(stop.clone()));
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let client = config.timeout_global(Some(Duration::from_secs(20))).build().new_agent();
        Self { runtime, scorer, readiness, stop, running, address, probe, client }
    }

    /// With the sample model, proven as in the field.
    fn with_sample() -> Self {
        Self::with_sample_and(options())
    }

    fn with_sample_and(options: Options) -> Self {
        let served = Self::new(options, Duration::from_secs(10));
        served.scorer.swap(sample("power-demand")).unwrap();
        served
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answered {
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = self.client.run(request.body(body).unwrap()).unwrap();
        let body = response.body_mut().read_to_vec().unwrap();
        Answered { status: response.status().as_u16(), headers: response.headers().clone(), body }
    }

    fn get(&self, path: &str) -> Answered {
        self.request("GET", path, &[], b"")
    }

    fn post(&self, path: &str, body: &str) -> Answered {
        self.request("POST", path, &[("content-type", "application/json")], body.as_bytes())
    }

    fn infer(&self, body: &Value) -> Answered {
        self.post("/v2/models/power-demand/infer", &body.to_string())
    }

    fn metric(&self, line: &str) -> u64 {
        let text = self.get("/metrics").text();
        let found = text.lines().find_map(|known| known.strip_prefix(line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {line} in {text}")).parse().unwrap()
    }
}

fn settings(queue: u32) -> Settings {
    Settings {
        provider: engine::Provider::Tract,
        threads: 1,
        instances: 1,
        queue,
        batching: Default::default(),
        tuning: Default::default(),
        collect: None,
    }
}

fn sample_directory() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../modules/samples/power-demand/2")
}

fn sample(name: &str) -> Proven {
    let bundle = Verified::local(&sample_directory()).unwrap();
    prove(&bundle, &name.parse().unwrap(), 2, &settings(16), None).unwrap()
}

/// The inputs of a golden sample of the sample model, and its outputs.
fn golden() -> (Value, Value) {
    let text = std::fs::read_to_string(sample_directory().join("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    (golden["samples"][0]["inputs"].clone(), golden["samples"][0]["outputs"].clone())
}

/// The readings of that golden sample.
fn readings() -> Vec<f32> {
    golden().0[0]["data"].as_array().unwrap().iter().map(|reading| reading.as_f64().unwrap() as f32).collect()
}

/// A model that tells when it begins, and ends when it is let.
struct Gate {
    signature: Signature,
    begun: Sender<()>,
    open: Arc<Mutex<Receiver<()>>>,
}

impl Model for Gate {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn score(&mut self, inputs: &Tensors) -> Result<Tensors, ScoreError> {
        self.begun.send(()).unwrap();
        self.open.lock().unwrap().recv().unwrap();
        Ok(inputs.clone())
    }
}

fn gate(queue: u32) -> (Proven, Receiver<()>, Sender<()>) {
    let spec = TensorSpec { name: "x".to_owned(), data_type: DataType::F32, shape: vec![None] };
    let signature = Signature { inputs: vec![spec.clone()], outputs: vec![spec] };
    let ((begun, begins), (opens, open)) = (channel(), channel());
    let model = Gate { signature: signature.clone(), begun, open: Arc::new(Mutex::new(open)) };
    let facts = Facts {
        name: "gate".parse().unwrap(),
        signature: signature.into(),
        settings: settings(queue),
        ..sample("x").facts
    };
    (Proven { facts, instances: vec![Box::new(model)] }, begins, opens)
}

#[test]
fn a_golden_sample_has_the_same_outputs_by_every_way() {
    let served = Served::with_sample();
    let (inputs, outputs) = golden();
    let answered = served.infer(&json!({ "id": "a-1", "inputs": inputs }));
    assert_eq!(answered.status, 200, "{}", answered.text());
    let said = answered.json();
    assert_eq!((&said["model_name"], &said["model_version"]), (&json!("power-demand"), &json!("2")));
    assert_eq!(said["id"], "a-1");
    for expected in outputs.as_array().unwrap() {
        let given = said["outputs"].as_array().unwrap();
        let given = given.iter().find(|output| output["name"] == expected["name"]).unwrap();
        assert_eq!((&given["shape"], &given["datatype"]), (&expected["shape"], &expected["datatype"]));
        let numbers = |data: &Value| {
            data.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect::<Vec<_>>()
        };
        for (given, expected) in numbers(&given["data"]).into_iter().zip(numbers(&expected["data"])) {
            assert!((given - expected).abs() < 1e-3, "{given} {expected}");
        }
    }

    let score = served.post("/score", &json!({ "data": [readings()] }).to_string());
    assert_eq!(score.status, 200, "{}", score.text());
    let by_name = |name: &str| {
        said["outputs"].as_array().unwrap().iter().find(|output| output["name"] == name).unwrap()["data"]
            .clone()
    };
    assert_eq!(
        score.json(),
        json!({ "probabilities": [by_name("probabilities")], "label": by_name("label") })
    );
    let query = format!("/score?data={}", json!(readings()));
    assert_eq!(served.get(&query).json(), score.json(), "GET with one row");
}

#[test]
fn tensors_travel_as_bytes_too() {
    let served = Served::with_sample();
    let blob: Vec<u8> = readings().iter().flat_map(|reading| reading.to_le_bytes()).collect();
    let head = |size: usize, more: Value| {
        let mut head = json!({ "inputs": [{ "name": "load", "shape": [1, 24], "datatype": "FP32",
            "parameters": { "binary_data_size": size } }] });
        head.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        head.to_string()
    };
    let post = |head: &str, blob: &[u8]| {
        let length = head.len().to_string();
        let body = [head.as_bytes(), blob].concat();
        let path = "/v2/models/power-demand/versions/2/infer";
        served.request("POST", path, &[("Inference-Header-Content-Length", &length)], &body)
    };
    let both = [
        json!({ "name": "label", "parameters": { "binary_data": true } }),
        json!({ "name": "probabilities" }),
    ];
    let answered = post(&head(96, json!({ "outputs": both })), &blob);
    assert_eq!(answered.status, 200, "{}", answered.text());
    let length: usize = answered.header("inference-header-content-length").parse().unwrap();
    let (json, bytes) = answered.body.split_at(length);
    let said: Value = serde_json::from_slice(json).unwrap();
    assert_eq!(said["outputs"][0]["parameters"]["binary_data_size"], 8);
    assert_eq!(said["outputs"][1]["name"], "probabilities", "in the order that was asked for");
    assert!(said["outputs"][1]["data"].is_array(), "only what was asked for as bytes is");
    assert_eq!(bytes, 0i64.to_le_bytes());

    let all = post(&head(96, json!({ "parameters": { "binary_data_output": true } })), &blob);
    let length: usize = all.header("inference-header-content-length").parse().unwrap();
    assert_eq!(all.body.len() - length, 8 + 8, "two FP32 and one INT64");

    for (head, blob, says) in [
        (
            head(95, json!({})),
            blob.as_slice(),
            "tensor `load`: binary data of 95 bytes ends within an element of FP32",
        ),
        (head(92, json!({})), &blob, "tensor `load`: shape [1, 24] holds 24 elements, 23 were given"),
        (head(97, json!({})), &blob, "tensor `load`: binary_data_size is 97, the body has 96 more bytes"),
        (head(96, json!({})), &[0; 97], "the body has 1 bytes that belong to no input"),
    ] {
        let answered = post(&head, blob);
        assert_eq!((answered.status, answered.json()["error"].as_str()), (400, Some(says)));
    }
    let path = "/v2/models/power-demand/infer";
    let raw = |body: &[u8]| served.request("POST", path, &[("Inference-Header-Content-Length", "0")], body);
    let answered = raw(&blob);
    assert_eq!(answered.status, 200, "{}", answered.text());
    let length: usize = answered.header("inference-header-content-length").parse().unwrap();
    assert_eq!(answered.body[length..], all.body[all.body.len() - 16..], "elements alone, both ways");
    assert!(raw(&blob[1..]).json()["error"].as_str().unwrap().contains("the body has 95 bytes"));
    for length in ["-1", "many", "99999"] {
        let answered = served.request("POST", path, &[("Inference-Header-Content-Length", length)], b"{}");
        assert_eq!(answered.status, 400, "{length}");
    }
}

#[test]
fn every_mistake_has_its_status_and_one_line() {
    let served = Served::with_sample();
    let infer = "/v2/models/power-demand/infer";
    let with = |field: &str, value: Value| {
        let mut input = json!({ "name": "load", "shape": [1, 24], "datatype": "FP32", "data": readings() });
        input[field] = value;
        json!({ "inputs": [input] }).to_string()
    };
    let good = || with("name", json!("load"));
    let deep = format!("{{\"inputs\":{}", "[".repeat(50_000));
    let outputs = |outputs: Value| json!({ "inputs": golden().0, "outputs": outputs }).to_string();
    let parameters =
        |parameters: Value| json!({ "inputs": golden().0, "parameters": parameters }).to_string();
    let cases: Vec<(&str, &str, String, u16, &str)> = vec![
        ("GET", "/v2/nothing", String::new(), 404, "there is nothing at /v2/nothing"),
        ("GET", infer, String::new(), 405, "GET is not answered at"),
        ("DELETE", "/v2", String::new(), 405, "DELETE is not answered at /v2"),
        (
            "POST",
            "/v2/models/other/infer",
            good(),
            404,
            "model other is not served here; these are: power-demand",
        ),
        ("GET", "/v2/models/other/ready", String::new(), 404, "model other is not served here"),
        ("GET", "/v2/models/%ff", String::new(), 400, "UTF-8"),
        (
            "GET",
            "/v2/models/power-demand/versions/1",
            String::new(),
            404,
            "is served here in version 2, not 1",
        ),
        ("POST", "/v2/models/power-demand/versions/x/infer", good(), 404, "in version 2, not x"),
        ("POST", infer, String::new(), 400, "the request can't be read: EOF"),
        ("POST", infer, "{\"inputs\"".to_owned(), 400, "the request can't be read: EOF"),
        ("POST", infer, "[]".to_owned(), 400, "the request can't be read"),
        ("POST", infer, "{}".to_owned(), 400, "missing field `inputs`"),
        ("POST", infer, deep, 400, "tensor `?`: expected an object"),
        ("POST", infer, "{\"inputs\":[]}".to_owned(), 400, "input `load` is missing: expected FP32 [-1, 24]"),
        ("POST", infer, with("name", json!("lord")), 400, "input `lord` is unknown: the model takes `load`"),
        ("POST", infer, with("datatype", json!("FP64")), 400, "input `load` is of type FP64: expected FP32"),
        ("POST", infer, with("datatype", json!("FP8")), 400, "unknown datatype FP8"),
        (
            "POST",
            infer,
            with("shape", json!([24])),
            400,
            "input `load` has shape [24]: expected FP32 [-1, 24]",
        ),
        ("POST", infer, with("shape", json!([2, 24])), 400, "shape [2, 24] holds 48 elements, data has 24"),
        ("POST", infer, with("shape", json!([-1, 24])), 400, "expected a shape of whole numbers, 0 or more"),
        ("POST", infer, with("data", json!(["x"])), 400, "tensor `load`"),
        ("POST", infer, with("data", json!([[1], [2, 3]])), 400, "lists at one depth differ in length"),
        ("POST", infer, with("data", Value::Null), 400, "tensor `load`: its data is missing"),
        ("POST", infer, outputs(json!([{ "name": "no" }])), 400, "output `no` is unknown: the model gives"),
        (
            "POST",
            infer,
            outputs(json!([{ "name": "label", "parameters": { "shared_memory_region": "x" } }])),
            400,
            "not supported",
        ),
        (
            "POST",
            infer,
            outputs(json!([{ "name": "probabilities", "parameters": { "classification": 0 } }])),
            400,
            "classification is no number of classes",
        ),
        (
            "POST",
            infer,
            parameters(json!({ "sequence_id": 7 })),
            400,
            "sequences of requests are not supported",
        ),
        ("POST", infer, parameters(json!({ "timeout": "soon" })), 400, "the request can't be read"),
        (
            "POST",
            infer,
            json!({ "id": "x".repeat(101), "inputs": golden().0 }).to_string(),
            400,
            "`id` is longer",
        ),
        ("POST", infer, " ".repeat(100_001), 413, "the body is larger than the limit of 100000 bytes"),
        ("GET", "/nothing", String::new(), 404, "there is nothing at /nothing"),
        ("PUT", "/score", String::new(), 405, "PUT is not answered at /score"),
        ("POST", "/score", String::new(), 400, "the body can't be read: EOF"),
        ("POST", "/score", "{\"data\":[[1,2]]}".to_owned(), 400, "input `load` has shape [1, 2]"),
        ("POST", "/score", "{\"rows\":1}".to_owned(), 400, "neither `data` nor `inputs`"),
        ("GET", "/score", String::new(), 400, "neither `data` nor `inputs`"),
        ("GET", "/score?data=x", String::new(), 400, "element 0 (\"x\") is not of type FP32"),
        ("POST", "/score", " ".repeat(100_001), 413, "the body is larger than the limit of 100000 bytes"),
        ("GET", "/swagger.json?version=1", String::new(), 404, "Swagger version [1] is not valid"),
    ];
    for (method, path, body, status, says) in cases {
        let json_content = [("content-type", "application/json")];
        let answered = served.request(method, path, &json_content, body.as_bytes());
        let key = if path.starts_with("/v2") { "error" } else { "message" };
        let text = answered.text();
        let line =
            answered.json()[key].as_str().unwrap_or_else(|| panic!("{method} {path}: {text}")).to_owned();
        assert_eq!(answered.status, status, "{method} {path}: {line}");
        assert!(line.contains(says) && !line.contains('\n'), "{method} {path}: {line}");
    }
    let gzip = [("content-encoding", "gzip"), ("content-type", "application/json")];
    assert_eq!(served.request("POST", infer, &gzip, b"x").status, 415);
    assert_eq!(served.request("POST", "/score", &[("content-type", "text/plain")], b"{}").status, 415);
    assert_eq!(served.request("GET", infer, &[], b"").header("allow"), "POST");
    assert_eq!(
        served.post(infer, &" ".repeat(100_001)).header("connection"),
        "close",
        "the body was not read"
    );

    assert!(served.infer(&json!({ "inputs": golden().0 })).status == 200, "and it still serves");
    let rejected =
        served.metric(r#"nv_inference_request_failure{model="power-demand",version="2",reason="OTHER"}"#);
    assert!(rejected >= 4, "{rejected}");
    assert_eq!(served.metric(r#"nv_inference_request_success{model="power-demand",version="2"}"#), 1);
    assert_eq!(served.metric(r#"edgewise_http_responses_total{status="413"}"#), 3);
    assert_eq!(served.metric("agent_up"), 1);
}

#[test]
fn what_is_refused_over_grpc_is_counted_by_its_code() {
    let served = Served::with_sample();
    let call = |method: &str, message: Vec<u8>| {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let body = [&[0], length.as_slice(), &message].concat();
        let uri = format!("http://{}/inference.GRPCInferenceService/{method}", served.address);
        served.runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(served.address).await.unwrap();
            let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
            let (mut sender, connection) = handshake.await.unwrap();
            tokio::spawn(connection);
            let request = ureq::http::Request::post(uri).body(axum::body::Body::from(body)).unwrap();
            let answered = sender.send_request(request).await.unwrap();
            let code = answered.headers().get("grpc-status").cloned();
            let body = http_body_util::BodyExt::collect(answered.into_body()).await.unwrap();
            let code = code.or_else(|| body.trailers()?.get("grpc-status").cloned()).unwrap();
            (code.to_str().unwrap().to_owned(), body.to_bytes().to_vec())
        })
    };
    assert_eq!(call("ServerLive", Vec::new()), ("0".to_owned(), vec![0, 0, 0, 0, 2, 8, 1]));
    assert_eq!(call("ModelInfer", [0x2a, 0].repeat(40_000)).0, "3", "40,000 inputs");
    assert_eq!(call("ModelInfer", Vec::new()).0, "5", "no model");
    assert_eq!(call("ModelInfer", vec![0; 100_000]).0, "8", "too large");
    for (code, count) in [("OK", 1), ("INVALID_ARGUMENT", 1), ("NOT_FOUND", 1), ("RESOURCE_EXHAUSTED", 1)] {
        let line = format!(r#"edgewise_grpc_responses_total{{code="{code}"}}"#);
        assert_eq!(served.metric(&line), count, "{code}");
    }
}

#[test]
fn azure_clients_find_what_they_know() {
    let served = Served::with_sample();
    assert_eq!(served.get("/").text(), "Healthy");
    let headers = [
        ("content-type", "application/json; charset=utf-8"),
        ("x-request-id", "r-1"),
        ("x-ms-request-id", "legacy"),
        ("TraceId", "t-1"),
        ("origin", "https://plant.example"),
    ];
    let answered =
        served.request("POST", "/score", &headers, json!({ "data": [readings()] }).to_string().as_bytes());
    assert_eq!(answered.status, 200, "{}", answered.text());
    for (name, value) in [
        ("x-request-id", "r-1"),
        ("x-ms-request-id", "legacy"),
        ("x-ms-client-request-id", "legacy"),
        ("traceid", "t-1"),
        ("x-ms-run-function-failed", "False"),
        ("access-control-allow-origin", "https://plant.example"),
    ] {
        assert_eq!(answered.header(name), value, "{name}");
    }
    assert!(answered.header("x-ms-run-fn-exec-ms").parse::<f64>().unwrap() > 0.0);
    assert!(answered.header("x-ms-server-version").starts_with("edgewise-agent/"));

    let made = served.get("/");
    assert_eq!(made.header("x-request-id").len(), 36, "a UUID is made");
    assert_eq!(made.header("x-ms-request-id"), made.header("x-request-id"));
    let long = "x".repeat(101);
    for name in ["x-request-id", "x-ms-request-id", "x-ms-client-request-id"] {
        assert_eq!(served.request("GET", "/", &[(name, &long)], b"").status, 431, "{name}");
    }
    let preflight = |origin| {
        let headers = [("origin", origin), ("access-control-request-headers", "content-type")];
        served.request("OPTIONS", "/score", &headers, b"")
    };
    let allowed = preflight("https://plant.example");
    assert_eq!((allowed.status, allowed.text().as_str()), (200, ""));
    assert_eq!(allowed.header("access-control-allow-headers"), "content-type");
    let stranger = preflight("https://elsewhere.example");
    assert_eq!((stranger.status, stranger.header("access-control-allow-origin")), (200, ""));

    for (path, dialect) in [("/swagger.json", "/swagger"), ("/swagger.json?version=3", "/openapi")] {
        let swagger = served.get(path).json();
        let schemas =
            swagger.pointer("/definitions").or_else(|| swagger.pointer("/components/schemas")).unwrap();
        assert!(swagger.pointer(dialect).is_some(), "{path}");
        assert_eq!(schemas["ServiceInput"]["properties"]["data"]["items"]["maxItems"], 24);
        let example = schemas["ServiceInput"]["example"].to_string();
        assert_eq!(served.post("/score", &example).status, 200, "the example can be scored");
    }

    served.scorer.swap(sample("another")).unwrap();
    let several = served.post("/score", "{}");
    assert_eq!(several.status, 400);
    assert!(several.text().contains("another, power-demand"), "{}", several.text());
}

#[test]
fn health_and_metadata_follow_the_agent() {
    let served = Served::new(options(), Duration::from_secs(10));
    assert_eq!(served.get("/v2").json()["extensions"], json!(inference::EXTENSIONS));
    assert_eq!(served.get("/v2/health/live").status, 200);
    let starting = served.get("/v2/health/ready");
    assert_eq!((starting.status, &starting.json()["ready"]), (503, &json!(false)));
    assert_eq!(served.post("/score", "{}").status, 503, "no model yet");
    served.scorer.swap(sample("power-demand")).unwrap();
    served.readiness.send_replace(Readiness::ready());
    assert_eq!(served.get("/v2/health/ready").status, 200);
    assert_eq!(served.get("/v2/models/power-demand/ready").status, 200);
    let about = served.get("/v2/models/power-demand").json();
    assert_eq!(about["inputs"], json!([{ "name": "load", "datatype": "FP32", "shape": [-1, 24] }]));
    assert_eq!((&about["versions"], &about["platform"]), (&json!(["2"]), &json!("onnx_onnxv1")));
}

#[test]
fn a_full_queue_and_a_slow_model_are_said_at_once() {
    let served = Served::new(options(), Duration::from_millis(200));
    let (proven, begins, opens) = gate(1);
    served.scorer.swap(proven).unwrap();
    let body = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}"#;
    std::thread::scope(|scope| {
        let scored = scope.spawn(|| served.post("/score", r#"{"data":[1]}"#));
        begins.recv().unwrap();
        let scored = scored.join().unwrap();
        assert_eq!(scored.status, 500);
        assert_eq!(scored.json()["message"], "Scoring timeout after 200 ms");
        assert_eq!(scored.header("x-ms-run-function-failed"), "True");

        // The worker is still in the first request: the second waits, so the third finds the queue full.
        let waits = scope.spawn(|| served.post("/v2/models/gate/infer", body));
        let full = std::iter::repeat_with(|| served.post("/v2/models/gate/infer", body))
            .find(|answered| answered.text().contains("busy"))
            .unwrap();
        assert_eq!((full.status, full.header("retry-after")), (503, "1"));
        let waits = waits.join().unwrap();
        assert_eq!(waits.status, 503);
    });
    drop(opens);
}

#[test]
fn who_waits_no_longer_is_counted_as_canceled() {
    let served = Served::new(options(), Duration::from_secs(60));
    let (proven, begins, opens) = gate(2);
    served.scorer.swap(proven).unwrap();
    let canceled =
        || served.metric(r#"nv_inference_request_failure{model="gate",version="2",reason="CANCELED"}"#);
    let input = json!([{ "name": "x", "shape": [1], "datatype": "FP32", "data": [1] }]);
    let body = |parameters: Value| json!({ "inputs": input, "parameters": parameters }).to_string();
    // Microseconds; the model does not end before it is let.
    let soon = body(json!({ "timeout": 1000, "sequence_id": "", "priority": 3 }));
    let refused = served.post("/v2/models/gate/infer", &soon);
    assert_eq!((refused.status, &refused.json()["error"]), (503, &json!("scoring timeout after 1 ms")));
    assert_eq!(canceled(), 1);

    let mut gone = TcpStream::connect(served.address).unwrap();
    let body = body(json!({ "timeout": 0 }));
    let length = body.len();
    let head = format!("POST /v2/models/gate/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    gone.write_all((head + &body).as_bytes()).unwrap();
    begins.recv().unwrap();
    let pending = r#"nv_inference_pending_request_count{model="gate",version="2"}"#;
    while served.metric(pending) == 0 {
        std::thread::yield_now();
    }
    drop(gone);
    while served.metric(pending) > 0 {
        std::thread::yield_now();
    }
    assert_eq!(canceled(), 2);
    drop(opens);
}

#[test]
fn a_stop_answers_what_is_under_way_and_frees_the_port() {
    let served = Served::new(options(), Duration::from_secs(10));
    let (proven, begins, opens) = gate(1);
    served.scorer.swap(proven).unwrap();
    std::thread::scope(|scope| {
        let scored = scope.spawn(|| served.post("/score", r#"{"data":[1.5]}"#));
        begins.recv().unwrap();
        served.stop.cancel();
        opens.send(()).unwrap();
        assert_eq!(scored.join().unwrap().json(), json!([1.5]));
    });
    served.runtime.block_on(served.running).unwrap().unwrap();
    assert!(TcpStream::connect(served.address).is_err());
}

#[test]
fn a_peer_that_stalls_loses_its_connection() {
    let served = Served::with_sample_and(Options { read_timeout: Duration::from_millis(500), ..options() });
    let stall = |sent: &str| {
        let mut peer = TcpStream::connect(served.address).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        peer.write_all(sent.as_bytes()).unwrap();
        let mut answered = String::new();
        peer.read_to_string(&mut answered).unwrap();
        answered
    };
    assert!(!stall("GET /v2 HTTP/1.1\r\nhost:").contains("200 OK"), "a head that never ends");
    let body =
        "POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    assert!(stall(body).starts_with("HTTP/1.1 408"), "a body that never ends");
    let garbage = "\u{0}\u{1}nonsense\r\n\r\n";
    assert!(stall(garbage).starts_with("HTTP/1.1 400"));
    assert_eq!(served.get("/").text(), "Healthy");
}

#[test]
fn bodies_together_have_a_bound() {
    let served = Served::with_sample_and(Options { read_timeout: Duration::from_millis(500), ..options() });
    let stalled = |bytes: usize| {
        let mut peer = TcpStream::connect(served.address).unwrap();
        let head = "POST /v2/models/power-demand/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n";
        peer.write_all(head.as_bytes()).unwrap();
        peer.write_all(&vec![b' '; bytes]).unwrap();
        peer
    };
    // What two bodies of 90 kB have beyond their first 32 kB is more than 100 kB: one is refused, though each is small enough.
    let mut peers = [stalled(90_000), stalled(90_000)];
    let answers: Vec<String> = peers
        .iter_mut()
        .map(|peer| {
            let mut first = [0; 12];
            peer.read_exact(&mut first).unwrap();
            String::from_utf8_lossy(&first).into_owned()
        })
        .collect();
    assert!(answers.iter().any(|answer| answer.contains("503")), "{answers:?}");
    assert!(answers.iter().any(|answer| answer.contains("408")), "{answers:?}");
}

#[test]
fn a_probe_is_answered_past_a_crowd_and_not_by_a_server_that_stands_still() {
    let alive = |served: &Served| {
        let asked = async { tokio::time::timeout(Duration::from_secs(10), served.probe.is_alive()).await };
        served.runtime.block_on(asked)
    };
    let served = Served::new(Options { max_connections: 1, ..options() }, Duration::from_secs(10));
    let mut crowd = TcpStream::connect(served.address).unwrap();
    crowd.write_all(b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    crowd.read_exact(&mut [0; 12]).unwrap();
    assert_eq!(alive(&served), Ok(true), "the only place is taken");
    served.stop.cancel();
    drop(crowd);
    served.runtime.block_on(async {
        while !served.running.is_finished() {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(alive(&served), Ok(false), "the server has ended");
    let (probe, _still) = Probe::new();
    let asked = async { tokio::time::timeout(Duration::from_millis(100), probe.is_alive()).await };
    assert!(served.runtime.block_on(asked).is_err(), "nobody answers");
}

#[test]
fn who_has_a_key_is_let_in_and_a_new_one_needs_no_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    std::fs::write(&path, "old\n").unwrap();
    let served = Served::with_sample_and(Options { keys: Some(path.clone()), ..options() });
    let get = |key: &str| served.request("GET", "/v2", &[("authorization", &format!("Bearer {key}"))], b"");
    let refused = served.get("/v2");
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, "Bearer"));
    assert!(refused.text().contains("a key is needed"), "{}", refused.text());
    assert_eq!(
        served.post("/score", "{}").json()["message"],
        "a key is needed: send `authorization: Bearer KEY`"
    );
    assert_eq!((get("old").status, get("new").status), (200, 401));
    assert_eq!(served.get("/v2/health/live").status, 200, "whoever watches it needs none");
    let rotate = |keys: &str, until: &dyn Fn() -> bool| {
        std::fs::write(&path, keys).unwrap();
        let begun = std::time::Instant::now();
        while !until() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the keys {keys:?} are not taken up");
            std::thread::yield_now();
        }
    };
    rotate("old\nnew\n", &|| get("new").status == 200);
    assert_eq!(get("old").status, 200);
    rotate("new\n", &|| get("old").status == 401);
    assert_eq!(get("new").status, 200);
}
