//! The Open Inference Protocol v2 over gRPC, as tritonclient and KServe's clients speak it, with Triton's statistics, index
//! and configuration.
//!
//! It is answered wherever the scoring API listens. What is not supported is refused by name, never passed over: shared
//! memory, streams, loading and unloading. A call that its caller gives up, or whose time is over, is not scored.

mod frame;
mod message;
mod tensors;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use engine::Signature;
use prost::Message;
use tonic::{Code, Status};

use self::message::{
    Choice, DynamicBatching, InferBatchStatistics, InferStatistics, MemoryUsage, ModelConfig,
    ModelConfigResponse, ModelIndex, ModelInferRequest, ModelInferResponse, ModelInput, ModelMetadata,
    ModelOutput, ModelStatistics, ModelStatisticsResponse, Named, Nothing, RepositoryIndexRequest,
    RepositoryIndexResponse, RequestedOutput, ServerMetadata, StatisticDuration, Truth,
};
use super::Api;
use super::failure::Failure;
use super::inference::{EXTENSIONS, PLATFORM, SERVER, score, size};
use super::intake::sized;
use super::repository::{Statistics, dims_beside, max_batch_size};
use crate::body::{Inference, MAX_ID_BYTES, NO_SEQUENCES, WantedOutput, WantedOutputs, patience};
use crate::scorer::Live;
use crate::service::Answer;

/// Where its methods are.
pub(super) const SERVICE: &str = "/inference.GRPCInferenceService/";

/// The header with which a caller says how long it waits.
const TIMEOUT: &str = "grpc-timeout";

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/inference.GRPCInferenceService/{method}", post(answer))
}

async fn answer(State(api): State<Api>, Path(method): Path<String>, request: Request) -> Response {
    match method.as_str() {
        "ServerLive" => unary(api, request, server_live).await,
        "ServerReady" => unary(api, request, server_ready).await,
        "ModelReady" => unary(api, request, model_ready).await,
        "ServerMetadata" => unary(api, request, server_metadata).await,
        "ModelMetadata" => unary(api, request, model_metadata).await,
        "ModelInfer" => call(api, request, infer).await,
        "ModelStatistics" => unary(api, request, statistics).await,
        "ModelConfig" => unary(api, request, config).await,
        "RepositoryIndex" => unary(api, request, index).await,
        _ => {
            let line = "this agent has no such method";
            let refused = async |_, _| Err(Failure::new(StatusCode::NOT_IMPLEMENTED, line));
            call(api, request, refused).await
        }
    }
}

/// A call whose message is small.
async fn unary<Q, A, F>(api: Api, request: Request, work: impl FnOnce(Api, Q) -> F) -> Response
where
    Q: Message + Default,
    A: Message,
    F: Future<Output = Result<A, Failure>>,
{
    let work = |api, message| async move {
        let message = Q::decode(message).map_err(|error| Failure::bad_request(error.to_string()))?;
        frame::write(&work(api, message).await?)
    };
    call(api, request, work).await
}

/// Reads a message within the bounds of all bodies, and has it answered within the caller's time.
async fn call<F>(api: Api, request: Request, work: impl FnOnce(Api, Bytes) -> F) -> Response
where
    F: Future<Output = Result<Bytes, Failure>>,
{
    let (parts, body) = request.into_parts();
    let answering = async {
        let received = api.intake.receive(&parts.headers, body).await?;
        work(api.clone(), frame::read(&received.bytes)?).await
    };
    let answered = match timeout(&parts.headers) {
        None => answering.await,
        Some(limit) => tokio::time::timeout(limit, answering).await.unwrap_or_else(|_| {
            Err(Failure::new(StatusCode::REQUEST_TIMEOUT, format!("not answered within {limit:?}")))
        }),
    };
    match answered {
        Ok(message) => frame::answer(message),
        Err(failure) => status(&failure).into_http(),
    }
}

async fn server_live(api: Api, _: Nothing) -> Result<Truth, Failure> {
    Ok(Truth { is: api.readiness.borrow().live })
}

async fn server_ready(api: Api, _: Nothing) -> Result<Truth, Failure> {
    let readiness = api.readiness.borrow().clone();
    Ok(Truth { is: readiness.live && readiness.ready })
}

async fn model_ready(api: Api, named: Named) -> Result<Truth, Failure> {
    Ok(Truth { is: find(&api, &named.name, &named.version).is_ok() })
}

async fn server_metadata(_: Api, _: Nothing) -> Result<ServerMetadata, Failure> {
    Ok(ServerMetadata {
        name: SERVER.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    })
}

async fn model_metadata(api: Api, named: Named) -> Result<ModelMetadata, Failure> {
    let live = find(&api, &named.name, &named.version)?;
    let signature = &live.facts.signature;
    Ok(ModelMetadata {
        name: live.facts.name.to_string(),
        versions: vec![live.facts.version.to_string()],
        platform: PLATFORM.to_owned(),
        inputs: signature.inputs.iter().map(tensors::metadata).collect(),
        outputs: signature.outputs.iter().map(tensors::metadata).collect(),
    })
}

async fn infer(api: Api, message: Bytes) -> Result<Bytes, Failure> {
    let (length, models) = (message.len(), api.clone());
    let read = move || {
        let request = ModelInferRequest::read(message)?;
        let live = find(&models, &request.model_name, &request.model_version)?;
        let inference = live.counters.reading(|| read(request, &live.facts.signature))?;
        Ok((live, inference))
    };
    let (live, inference) = sized(length, read).await?;
    let given_id = inference.id.clone().unwrap_or_default();
    let (answer, outputs) = score(&api, live, inference).await?;
    let size = size(&answer);
    sized(size, move || answer.live.counters.writing(|| write(&answer, given_id, &outputs))).await
}

/// Reads the message of a `ModelInfer` for a model of this signature.
///
/// # Errors
/// It is no such message, or asks for what can't be.
pub fn read_call(message: &[u8], signature: &Signature) -> Result<Inference, String> {
    let request = ModelInferRequest::read(Bytes::copy_from_slice(message));
    let inference = request.and_then(|request| read(request, signature));
    inference.map_err(|failure| failure.line().to_owned())
}

fn read(request: ModelInferRequest, signature: &Signature) -> Result<Inference, Failure> {
    let ModelInferRequest { id, parameters, inputs, outputs, raw_input_contents, .. } = request;
    if id.len() > MAX_ID_BYTES {
        return Err(Failure::bad_request(format!("`id` is longer than {MAX_ID_BYTES} bytes")));
    }
    let outputs = match outputs.is_empty() {
        true => WantedOutputs::All { as_bytes: true },
        false => {
            let these = outputs.into_iter().map(wanted).collect::<Result<Vec<WantedOutput>, Failure>>()?;
            WantedOutputs::these(these, signature)?
        }
    };
    let choice = |name: &str| parameters.get(name).and_then(|parameter| parameter.choice.as_ref());
    match choice("sequence_id") {
        None | Some(Choice::Int(0) | Choice::Unsigned(0)) => {}
        Some(Choice::Text(text)) if text.is_empty() => {}
        Some(_) => return Err(Failure::bad_request(NO_SEQUENCES)),
    }
    let timeout = match choice("timeout") {
        None => None,
        Some(Choice::Unsigned(timeout)) => patience(*timeout),
        Some(Choice::Int(timeout)) if *timeout >= 0 => patience(timeout.unsigned_abs()),
        Some(_) => return Err(Failure::bad_request("`timeout` is no number of microseconds")),
    };
    let inputs = tensors::inputs(inputs, &raw_input_contents)?;
    Ok(Inference { id: Some(id).filter(|id| !id.is_empty()), inputs, outputs, timeout })
}

fn write(answer: &Answer, id: String, wanted: &WantedOutputs) -> Result<Bytes, Failure> {
    let facts = &answer.live.facts;
    let chosen = wanted.choose(&answer.scored.outputs, &facts.labels)?;
    let (outputs, raw_output_contents) =
        chosen.iter().map(|(name, tensor, _)| tensors::output(name, tensor)).unzip();
    frame::write(&ModelInferResponse {
        model_name: facts.name.to_string(),
        model_version: facts.version.to_string(),
        id,
        outputs,
        raw_output_contents,
    })
}

fn wanted(output: RequestedOutput) -> Result<WantedOutput, Failure> {
    let RequestedOutput { name, parameters } = output;
    if parameters.contains_key("shared_memory_region") {
        let line = format!("output `{name}`: shared memory is not supported");
        return Err(Failure::new(StatusCode::NOT_IMPLEMENTED, line));
    }
    let classes = match parameters.get("classification").map(|parameter| &parameter.choice) {
        None => None,
        Some(Some(Choice::Int(classes))) if *classes > 0 => usize::try_from(*classes).ok(),
        Some(_) => {
            return Err(Failure::bad_request(format!(
                "output `{name}`: classification is no number of classes"
            )));
        }
    };
    Ok(WantedOutput { name, as_bytes: true, classes })
}

async fn statistics(api: Api, named: Named) -> Result<ModelStatisticsResponse, Failure> {
    let models = match named.name.is_empty() {
        true => api.service.scorer.all(),
        false => vec![find(&api, &named.name, &named.version)?],
    };
    Ok(ModelStatisticsResponse { model_stats: models.iter().map(|live| statistics_of(live)).collect() })
}

fn statistics_of(live: &Live) -> ModelStatistics {
    let Statistics {
        last_ms,
        rows,
        runs,
        answered,
        failed,
        input_ns,
        queue_ns,
        compute_ns,
        output_ns,
        all_ns,
        batches,
    } = Statistics::of(live);
    let of = |count: u64, ns: u64| Some(StatisticDuration { count, ns });
    let of_batch = |(rows, (runs, ns)): (usize, (u64, u64))| InferBatchStatistics {
        batch_size: rows as u64,
        compute_input: of(runs, 0),
        compute_infer: of(runs, ns),
        compute_output: of(runs, 0),
    };
    ModelStatistics {
        name: live.facts.name.to_string(),
        version: live.facts.version.to_string(),
        last_inference: last_ms,
        inference_count: rows,
        execution_count: runs,
        inference_stats: Some(InferStatistics {
            success: of(answered, all_ns),
            fail: of(failed, 0),
            queue: of(answered, queue_ns),
            compute_input: of(answered, input_ns),
            compute_infer: of(answered, compute_ns),
            compute_output: of(answered, output_ns),
        }),
        batch_stats: batches.into_iter().map(of_batch).collect(),
        memory_usage: vec![MemoryUsage { kind: "CPU".to_owned(), id: 0, byte_size: live.facts.memory_bytes }],
    }
}

async fn config(api: Api, named: Named) -> Result<ModelConfigResponse, Failure> {
    let live = find(&api, &named.name, &named.version)?;
    let (signature, batching) = (&live.facts.signature, &live.facts.settings.batching);
    let input = |spec: &engine::TensorSpec| ModelInput {
        name: spec.name.clone(),
        data_type: tensors::type_number(spec.data_type),
        dims: dims_beside(batching, spec),
    };
    let output = |spec: &engine::TensorSpec| ModelOutput {
        name: spec.name.clone(),
        data_type: tensors::type_number(spec.data_type),
        dims: dims_beside(batching, spec),
    };
    let config = ModelConfig {
        name: live.facts.name.to_string(),
        platform: PLATFORM.to_owned(),
        max_batch_size: i32::try_from(max_batch_size(batching)).unwrap_or(i32::MAX),
        input: signature.inputs.iter().map(input).collect(),
        output: signature.outputs.iter().map(output).collect(),
        dynamic_batching: batching.is_on().then(|| DynamicBatching {
            preferred_batch_size: batching
                .preferred
                .iter()
                .filter_map(|rows| i32::try_from(*rows).ok())
                .collect(),
            max_queue_delay_microseconds: u64::try_from(batching.max_delay.as_micros()).unwrap_or(u64::MAX),
        }),
        backend: "onnxruntime".to_owned(),
    };
    Ok(ModelConfigResponse { config: Some(config) })
}

async fn index(api: Api, _: RepositoryIndexRequest) -> Result<RepositoryIndexResponse, Failure> {
    let entry = |live: &Arc<Live>| ModelIndex {
        name: live.facts.name.to_string(),
        version: live.facts.version.to_string(),
        state: "READY".to_owned(),
        reason: String::new(),
    };
    Ok(RepositoryIndexResponse { models: api.service.scorer.all().iter().map(entry).collect() })
}

fn find(api: &Api, name: &str, version: &str) -> Result<Arc<Live>, Failure> {
    Ok(api.service.scorer.find(name, Some(version).filter(|version| !version.is_empty()))?)
}

/// What a failure is called here.
pub(super) fn status(failure: &Failure) -> Status {
    let code = match failure.status {
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::NOT_IMPLEMENTED => Code::Unimplemented,
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
        StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
        status if status.is_server_error() => Code::Internal,
        _ => Code::InvalidArgument,
    };
    Status::new(code, failure.line())
}

/// The code of an answer, where it is one over gRPC. What is not in its head is a success.
pub(super) fn code(uri: &Uri, answer: &Response) -> Option<Code> {
    uri.path().starts_with(SERVICE).then(|| {
        answer.headers().get(frame::STATUS).map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
    })
}

/// The name of a code that [`status`] gives.
pub(super) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::NotFound => "NOT_FOUND",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Unavailable => "UNAVAILABLE",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::Internal => "INTERNAL",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        _ => "UNKNOWN",
    }
}

/// How long the caller waits: up to eight digits and a unit, as gRPC over HTTP/2 has it. What can't be read is no limit.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_value = digits.len() <= 8 && digits.bytes().all(|digit| digit.is_ascii_digit());
    let value: u64 = digits.parse().ok().filter(|_| is_value)?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_time_is_read() {
        let read = |text: &'static str| {
            timeout(&HeaderMap::from_iter([(TIMEOUT.parse().unwrap(), text.parse().unwrap())]))
        };
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("1S"), Some(Duration::from_secs(1)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "5", "123456789S", "1x", "-1S", "+5S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }
}
