//! The floor: the least that could answer the same requests. axum, serde_json, tonic and the bare engine, which scores on
//! the network's threads; no names are checked, nothing is bounded, counted or kept.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::post;
use e2e::process::Failure;
use engine::{Data, LoadOptions, Model, Provider, Tensor, Tensors};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tonic::Status;
use tonic::server::{Grpc, UnaryService};
use tonic_prost::ProstCodec;

/// The word that makes this program the floor; a model's file, the number of threads and the library of ONNX Runtime follow.
pub(crate) const FLOOR: &str = "floor";

/// What a call over gRPC asks: the fields of `ModelInferRequest` that are used here.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct InferRequest {
    #[prost(string, tag = "1")]
    pub(crate) model_name: String,
    #[prost(message, repeated, tag = "5")]
    pub(crate) inputs: Vec<InputTensor>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pub(crate) raw_input_contents: Vec<Bytes>,
}

/// A tensor in a call, whose elements stand elsewhere.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct InputTensor {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) datatype: String,
    #[prost(int64, repeated, tag = "3")]
    pub(crate) shape: Vec<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct InferResponse {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(message, repeated, tag = "5")]
    outputs: Vec<InputTensor>,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    raw_output_contents: Vec<Bytes>,
}

#[derive(Deserialize)]
struct Asked {
    inputs: Vec<Input>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    shape: Vec<usize>,
    #[serde(default)]
    data: Vec<f32>,
}

#[derive(Serialize)]
struct Answer<'a> {
    outputs: Vec<Output<'a>>,
}

#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    shape: &'a [usize],
    datatype: &'static str,
    data: Numbers<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Numbers<'a> {
    F32(&'a [f32]),
    I64(&'a [i64]),
}

type Shared = Arc<Mutex<Box<dyn Model>>>;
type Wrong = (StatusCode, String);

/// Serves until it is ended.
pub(crate) fn serve(arguments: &[String]) -> Result<(), Failure> {
    let [path, threads, library] = arguments else { return Err("a model, threads and a library".to_owned()) };
    let threads = threads.parse().map_err(|error| format!("{threads}: {error}"))?;
    let options = LoadOptions {
        provider: Provider::Cpu,
        threads,
        onnxruntime: Some(PathBuf::from(library)),
        ..LoadOptions::default()
    };
    let onnx = std::fs::read(path).map_err(|error| format!("reading {path}: {error}"))?;
    let model = engine::load(&onnx, &options).map_err(|error| error.to_string())?.model;
    let model: Shared = Arc::new(Mutex::new(model));
    let router = Router::new()
        .route("/v2/models/{model}/infer", post(infer))
        .route("/inference.GRPCInferenceService/ModelInfer", post(call))
        .layer(DefaultBodyLimit::disable())
        .with_state(model);
    // As many threads as the agent has for its network.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let accept = async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("ready http=http://{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let router = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(stream), router).await);
            });
        }
    };
    runtime.and_then(|runtime| runtime.block_on(accept)).map_err(|error| error.to_string())
}

async fn infer(State(model): State<Shared>, headers: HeaderMap, body: Bytes) -> Result<Response, Wrong> {
    let length =
        headers.get("inference-header-content-length").and_then(|length| length.to_str().ok()?.parse().ok());
    let (head, tensor) =
        body.split_at_checked(length.unwrap_or(body.len())).ok_or_else(|| wrong("length"))?;
    let asked: Asked = serde_json::from_slice(head).map_err(|error| wrong(&error))?;
    let input = asked.inputs.into_iter().next().ok_or_else(|| wrong("no input"))?;
    let numbers = if length.is_some() { numbers(tensor) } else { input.data };
    let outputs = score(&model, &input.name, input.shape, numbers).map_err(|error| wrong(&error))?;
    if length.is_none() {
        let outputs = outputs.iter().map(|(name, tensor)| {
            let (datatype, data) = match tensor.data() {
                Data::F32(numbers) => ("FP32", Numbers::F32(numbers)),
                Data::I64(numbers) => ("INT64", Numbers::I64(numbers)),
                _ => ("", Numbers::F32(&[])),
            };
            Output { name, shape: tensor.shape(), datatype, data }
        });
        let body =
            serde_json::to_vec(&Answer { outputs: outputs.collect() }).map_err(|error| wrong(&error))?;
        return Ok(Response::new(Body::from(body)));
    }
    let (mut heads, mut bytes) = (Vec::new(), Vec::new());
    for (name, tensor) in outputs.iter() {
        let before = bytes.len();
        engine::binary::write(tensor, &mut bytes);
        let parameters = json!({ "binary_data_size": bytes.len() - before });
        let datatype = tensor.data_type().oip_name();
        heads.push(
            json!({ "name": name, "shape": tensor.shape(), "datatype": datatype, "parameters": parameters }),
        );
    }
    let head = json!({ "outputs": heads }).to_string();
    let length = head.len().to_string();
    let answer = Response::builder().header("inference-header-content-length", length);
    answer.body(Body::from([head.into_bytes(), bytes].concat())).map_err(|error| wrong(&error))
}

async fn call(State(model): State<Shared>, request: Request) -> Response {
    let codec = ProstCodec::<InferResponse, InferRequest>::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(64 << 20);
    grpc.unary(Scoring(model), request).await.map(Body::new)
}

struct Scoring(Shared);

impl UnaryService<InferRequest> for Scoring {
    type Response = InferResponse;
    type Future = std::future::Ready<Result<tonic::Response<InferResponse>, Status>>;

    fn call(&mut self, request: tonic::Request<InferRequest>) -> Self::Future {
        std::future::ready(
            self.answer(request.into_inner()).map(tonic::Response::new).map_err(Status::internal),
        )
    }
}

impl Scoring {
    fn answer(&self, request: InferRequest) -> Result<InferResponse, String> {
        let (input, bytes) =
            request.inputs.into_iter().zip(request.raw_input_contents).next().ok_or("no input")?;
        let shape = input.shape.iter().map(|length| *length as usize).collect();
        let outputs = score(&self.0, &input.name, shape, numbers(&bytes))?;
        let mut answer = InferResponse { model_name: request.model_name, ..InferResponse::default() };
        for (name, tensor) in outputs.iter() {
            let mut bytes = Vec::new();
            engine::binary::write(tensor, &mut bytes);
            answer.raw_output_contents.push(bytes.into());
            let datatype = tensor.data_type().oip_name().to_owned();
            let shape = tensor.shape().iter().map(|length| *length as i64).collect();
            answer.outputs.push(InputTensor { name: name.to_owned(), datatype, shape });
        }
        Ok(answer)
    }
}

fn score(model: &Shared, name: &str, shape: Vec<usize>, numbers: Vec<f32>) -> Result<Tensors, String> {
    let tensor = Tensor::from_vec(shape, numbers).map_err(|error| error.to_string())?;
    let inputs = [(name, tensor)].into_iter().collect();
    model.lock().unwrap_or_else(PoisonError::into_inner).score(&inputs).map_err(|error| error.to_string())
}

/// Little-endian numbers.
pub(crate) fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect()
}

fn wrong(error: impl std::fmt::Display) -> Wrong {
    (StatusCode::BAD_REQUEST, error.to_string())
}
