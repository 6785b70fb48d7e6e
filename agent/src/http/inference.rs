//! The Open Inference Protocol v2 over HTTP, as tritonclient and KServe's clients speak it.
//!
//! With the extension for binary tensors, which tritonclient uses unless it is told otherwise: the header
//! `Inference-Header-Content-Length` gives the length of the JSON, and the elements follow it (see [`body::infer`]). Where it
//! is 0 there are elements only.

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use engine::json::{self, JsonOutput};
use engine::{TensorSpec, binary};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::failure::Failure;
use super::intake::sized;
use super::repository::dims;
use super::{Api, json as json_response};
use crate::body::{self, Inference, WantedOutputs};
use crate::scorer::{Live, ScoreRefused};
use crate::service::Answer;

/// The server's name.
pub(super) const SERVER: &str = "edgewise-agent";

/// What it speaks beside the protocol.
pub(super) const EXTENSIONS: [&str; 5] =
    ["binary_tensor_data", "classification", "model_repository", "model_configuration", "statistics"];

/// The platform of every model.
pub(super) const PLATFORM: &str = "onnx_onnxv1";

const JSON_LENGTH: &str = "inference-header-content-length";

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
    let describe = |spec: &TensorSpec| json!({ "name": spec.name, "datatype": spec.data_type.oip_name(), "shape": dims(spec) });
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
    let read = move || {
        let read = || body::infer(&bytes, json_length, &model.facts.signature);
        Ok(model.counters.reading(read)?)
    };
    let inference = sized(received.bytes.len(), read).await?;
    let (answer, outputs) = score(&api, live, inference).await?;
    let size = size(&answer);
    sized(size, move || answer.live.counters.writing(|| write(&answer, &outputs))).await
}

/// Scores within the time of the caller, too, where it says one.
pub(super) async fn score(
    api: &Api,
    live: Arc<Live>,
    inference: Inference,
) -> Result<(Answer, WantedOutputs), Failure> {
    let Inference { id, inputs, outputs, timeout } = inference;
    let scoring = api.service.score_on(live, inputs, id, None);
    let scored = match timeout {
        None => scoring.await,
        Some(limit) => {
            let scored = tokio::time::timeout(limit, scoring).await;
            scored.unwrap_or(Err(ScoreRefused::Timeout(limit)))
        }
    };
    Ok((scored?, outputs))
}

/// About how many bytes it takes to write an answer.
pub(super) fn size(answer: &Answer) -> usize {
    answer.scored.outputs.iter().map(|(_, tensor)| tensor.len() * 8).sum()
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Failure> {
    let Some(length) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let length = length.to_str().ok().and_then(|length| length.parse().ok());
    let wrong = || Failure::bad_request("Inference-Header-Content-Length is not a number of bytes");
    length.map(Some).ok_or_else(wrong)
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
    let chosen = wanted.choose(&answer.scored.outputs, &answer.live.facts.labels)?;
    let mut blobs = Vec::new();
    let mut outputs = Vec::with_capacity(chosen.len());
    let mut any_bytes = false;
    for (name, tensor, as_bytes) in &chosen {
        outputs.push(if *as_bytes {
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
