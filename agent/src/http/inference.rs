//! The Open Inference Protocol v2 over HTTP, as tritonclient and KServe's clients speak it.
//!
//! With the extension for binary tensors, which tritonclient uses unless it is told otherwise: the header
//! `Inference-Header-Content-Length` gives the length of the JSON, and the elements follow it (see
//! [`engine::binary`]). What is not supported is refused, never passed over: shared memory and classification.

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use engine::json::{self, Cursor, JsonOutput, JsonTensor};
use engine::{Tensor, TensorSpec, Tensors, binary};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::failure::Failure;
use super::intake::sized;
use super::{Api, json as json_response};
use crate::scorer::Live;
use crate::service::Answer;

/// The server's name.
pub(super) const SERVER: &str = "edgewise-agent";

/// What it speaks beside the protocol.
pub(super) const EXTENSIONS: [&str; 4] =
    ["binary_tensor_data", "model_repository", "model_configuration", "statistics"];

/// The platform of every model.
pub(super) const PLATFORM: &str = "onnx_onnxv1";

const JSON_LENGTH: &str = "inference-header-content-length";

/// Longest id of a request, in bytes: it goes into every captured row.
pub(super) const MAX_ID_BYTES: usize = 100;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/{model}", get(model))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(model))
        .route("/v2/models/{model}/versions/{version}/ready", get(model_ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
}

/// The model in the path, and the version where there is one.
#[derive(Debug, Deserialize)]
pub(super) struct Target {
    model: String,
    version: Option<String>,
}

impl Target {
    pub(super) fn find(&self, api: &Api) -> Result<Arc<Live>, Failure> {
        Ok(api.service.scorer.find(&self.model, self.version.as_deref())?)
    }
}

impl FromRequestParts<Api> for Target {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Failure> {
        match Path::<Target>::from_request_parts(parts, api).await {
            Ok(Path(target)) => Ok(target),
            Err(error) => Err(Failure::bad_request(error.body_text())),
        }
    }
}

async fn server() -> Response {
    let about = json!({
        "name": SERVER,
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": EXTENSIONS,
    });
    axum::Json(about).into_response()
}

async fn live(State(api): State<Api>) -> Response {
    let health = api.readiness.borrow().clone();
    healthy("live", health.live, &health.why)
}

async fn ready(State(api): State<Api>) -> Response {
    let health = api.readiness.borrow().clone();
    healthy("ready", health.live && health.ready, &health.why)
}

fn healthy(what: &str, is: bool, why: &str) -> Response {
    if is {
        return axum::Json(json!({ what: true })).into_response();
    }
    let body = axum::Json(json!({ what: false, "error": why }));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

async fn model(State(api): State<Api>, target: Target) -> Result<Response, Failure> {
    let live = target.find(&api)?;
    let describe = |spec: &TensorSpec| {
        let shape: Vec<Value> =
            spec.shape.iter().map(|length| length.map_or(json!(-1), Value::from)).collect();
        json!({ "name": spec.name, "datatype": spec.data_type.oip_name(), "shape": shape })
    };
    let signature = &live.facts.signature;
    let about = json!({
        "name": live.facts.name,
        "versions": [live.facts.version.to_string()],
        "platform": PLATFORM,
        "inputs": signature.inputs.iter().map(describe).collect::<Vec<_>>(),
        "outputs": signature.outputs.iter().map(describe).collect::<Vec<_>>(),
    });
    Ok(axum::Json(about).into_response())
}

async fn model_ready(State(api): State<Api>, target: Target) -> Result<Response, Failure> {
    let live = target.find(&api)?;
    Ok(axum::Json(json!({ "name": live.facts.name, "ready": true })).into_response())
}

async fn infer(State(api): State<Api>, target: Target, request: Request) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let received = api.intake.receive(&parts.headers, body).await?;
    let live = target.find(&api)?;
    let json_length = json_length(&parts.headers)?;
    let (bytes, model) = (received.bytes.clone(), live.clone());
    let wanted = sized(bytes.len(), move || read(bytes, json_length, &model)).await?;
    let Wanted { id, inputs, outputs } = wanted;
    let answer = api.service.score_on(live, inputs, id, None).await?;
    let size = answer.scored.outputs.iter().map(|(_, tensor)| tensor.len() * 8).sum();
    sized(size, move || write(&answer, &outputs)).await
}

/// A request, read.
struct Wanted {
    id: Option<String>,
    inputs: Tensors,
    outputs: WantedOutputs,
}

/// The outputs that the caller wants, and which of them as bytes.
enum WantedOutputs {
    All { as_bytes: bool },
    These(Vec<(String, bool)>),
}

/// What a request has beside the elements that follow its JSON.
#[derive(Default)]
struct InferRequest {
    id: Option<String>,
    parameters: Option<RequestParameters>,
    inputs: Option<Vec<JsonTensor>>,
    outputs: Option<Vec<RequestedOutput>>,
}

#[derive(Default, Deserialize)]
struct RequestParameters {
    binary_data_output: Option<bool>,
}

#[derive(Deserialize)]
struct RequestedOutput {
    name: String,
    parameters: Option<OutputParameters>,
}

#[derive(Default, Deserialize)]
struct OutputParameters {
    binary_data: Option<bool>,
    classification: Option<Value>,
    shared_memory_region: Option<Value>,
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Failure> {
    let Some(length) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let length = length.to_str().ok().and_then(|length| length.parse().ok());
    let wrong = || Failure::bad_request("Inference-Header-Content-Length is not a number of bytes");
    length.map(Some).ok_or_else(wrong)
}

impl InferRequest {
    fn read(json: &[u8]) -> Result<Self, Failure> {
        let mut cursor = Cursor::new(json);
        let mut request = Self::default();
        cursor.object(|field, cursor| {
            match field {
                "id" => request.id = cursor.value()?,
                "parameters" => request.parameters = cursor.value()?,
                "outputs" => request.outputs = cursor.value()?,
                "inputs" => {
                    let inputs = request.inputs.get_or_insert_default();
                    cursor.list(|cursor| {
                        inputs.push(JsonTensor::read(cursor)?);
                        Ok::<_, Failure>(())
                    })?;
                }
                _ => cursor.skip()?,
            }
            Ok::<_, Failure>(())
        })?;
        cursor.end()?;
        Ok(request)
    }
}

fn read(body: Bytes, json_length: Option<usize>, live: &Live) -> Result<Wanted, Failure> {
    let (head, blobs) = body.split_at_checked(json_length.unwrap_or(body.len())).ok_or_else(|| {
        Failure::bad_request(format!(
            "Inference-Header-Content-Length is more than the body, which has {} bytes",
            body.len()
        ))
    })?;
    let request = InferRequest::read(head)?;
    if request.id.as_ref().is_some_and(|id| id.len() > MAX_ID_BYTES) {
        return Err(Failure::bad_request(format!("`id` is longer than {MAX_ID_BYTES} bytes")));
    }
    let as_bytes = request.parameters.unwrap_or_default().binary_data_output.unwrap_or(false);
    let outputs = match request.outputs {
        Some(outputs) if !outputs.is_empty() => wanted_outputs(outputs, as_bytes, live)?,
        _ => WantedOutputs::All { as_bytes },
    };
    let tensors = request
        .inputs
        .ok_or_else(|| Failure::bad_request("the request can't be read: missing field `inputs`"))?;
    Ok(Wanted { id: request.id, inputs: inputs(tensors, blobs)?, outputs })
}

/// The inputs, each from the JSON or from its part of the bytes after it.
fn inputs(tensors: Vec<JsonTensor>, mut blobs: &[u8]) -> Result<Tensors, Failure> {
    let mut inputs = Tensors::new();
    for tensor in tensors {
        let (name, tensor) = match tensor.parameters.binary_data_size {
            None => tensor.into_tensor()?,
            Some(size) => {
                let (blob, rest) = blobs.split_at_checked(size).ok_or_else(|| {
                    let (name, left) = (&tensor.name, blobs.len());
                    Failure::bad_request(format!(
                        "tensor `{name}`: binary_data_size is {size}, the body has {left} more bytes"
                    ))
                })?;
                blobs = rest;
                tensor.with_bytes(blob)?
            }
        };
        inputs.push(name, tensor);
    }
    match blobs.len() {
        0 => Ok(inputs),
        more => Err(Failure::bad_request(format!("the body has {more} bytes that belong to no input"))),
    }
}

/// Makes sure that the model gives an output.
pub(super) fn known_output(live: &Live, name: &str) -> Result<(), Failure> {
    let known = &live.facts.signature.outputs;
    if known.iter().any(|spec| spec.name == name) {
        return Ok(());
    }
    let known: Vec<String> = known.iter().map(|spec| format!("`{}`", spec.name)).collect();
    Err(Failure::bad_request(format!("output `{name}` is unknown: the model gives {}", known.join(", "))))
}

fn wanted_outputs(
    outputs: Vec<RequestedOutput>,
    as_bytes: bool,
    live: &Live,
) -> Result<WantedOutputs, Failure> {
    let mut wanted: Vec<(String, bool)> = Vec::new();
    for RequestedOutput { name, parameters } in outputs {
        let parameters = parameters.unwrap_or_default();
        let refuse = |why: String| Err(Failure::bad_request(format!("output `{name}` {why}")));
        known_output(live, &name)?;
        if wanted.iter().any(|(earlier, _)| *earlier == name) {
            return refuse("is asked for twice".to_owned());
        }
        if parameters.classification.is_some() || parameters.shared_memory_region.is_some() {
            return refuse(
                "is asked for by classification or shared memory, which are not supported".to_owned(),
            );
        }
        wanted.push((name, parameters.binary_data.unwrap_or(as_bytes)));
    }
    Ok(WantedOutputs::These(wanted))
}

#[derive(Serialize)]
struct InferResponse<'a> {
    model_name: &'a str,
    model_version: String,
    id: &'a str,
    outputs: Vec<ResponseOutput<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ResponseOutput<'a> {
    Json(JsonOutput<'a>),
    Bytes { name: &'a str, datatype: &'static str, shape: &'a [usize], parameters: BlobSize },
}

#[derive(Serialize)]
struct BlobSize {
    binary_data_size: usize,
}

fn write(answer: &Answer, wanted: &WantedOutputs) -> Result<Response, Failure> {
    let given = &answer.scored.outputs;
    let chosen: Vec<(&str, &Tensor, bool)> = match wanted {
        WantedOutputs::All { as_bytes } => given.iter().map(|(name, t)| (name, t, *as_bytes)).collect(),
        WantedOutputs::These(these) => {
            let find = |(name, as_bytes): &'_ (String, bool)| {
                given.iter().find(|(known, _)| known == name).map(|(known, t)| (known, t, *as_bytes))
            };
            these.iter().filter_map(find).collect()
        }
    };
    let mut blobs = Vec::new();
    let mut outputs = Vec::with_capacity(chosen.len());
    let mut any_bytes = false;
    for (name, tensor, as_bytes) in chosen {
        outputs.push(if as_bytes {
            any_bytes = true;
            let before = blobs.len();
            binary::write(tensor, &mut blobs);
            let parameters = BlobSize { binary_data_size: blobs.len() - before };
            let datatype = tensor.data_type().oip_name();
            ResponseOutput::Bytes { name, datatype, shape: tensor.shape(), parameters }
        } else {
            ResponseOutput::Json(json::write(name, tensor))
        });
    }
    let response = InferResponse {
        model_name: answer.live.facts.name.as_str(),
        model_version: answer.live.facts.version.to_string(),
        id: &answer.request_id,
        outputs,
    };
    let mut body = serde_json::to_vec(&response).map_err(Failure::internal)?;
    if !any_bytes {
        return Ok(json_response(body));
    }
    let length = body.len().to_string();
    body.append(&mut blobs);
    let headers = [(header::CONTENT_TYPE.as_str(), "application/octet-stream"), (JSON_LENGTH, &length)];
    Ok((headers, body).into_response())
}
