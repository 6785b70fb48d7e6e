//! `/score`, `/` and `/swagger.json`, as the inference server of Azure ML answers them.
//!
//! A 200 from `/score` is what the model gave and nothing around it: nested lists for a model of one output, else
//! an object of them by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::failure::Failure;
use super::intake::sized;
use super::{Api, json as json_response, swagger, wrong_method};
use crate::body::{self, Lone};
use crate::scorer::{Live, NoChoice, ScoreRefused};
use crate::service::Answer;

/// Longest id in a header, in characters.
const MAX_ID: usize = 100;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
const LEGACY_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");
const TRACE_ID: HeaderName = HeaderName::from_static("traceid");
const RUN_FAILED: HeaderName = HeaderName::from_static("x-ms-run-function-failed");
const RUN_TIME: HeaderName = HeaderName::from_static("x-ms-run-fn-exec-ms");
const SERVER_VERSION: HeaderName = HeaderName::from_static("x-ms-server-version");

pub(super) fn routes(api: Api) -> Router<Api> {
    let score = post(score_body).get(score_query).options(async || StatusCode::OK).fallback(wrong_method);
    Router::new()
        .route("/", get(async || "Healthy"))
        .route("/score", score)
        .route("/swagger.json", get(describe))
        .layer(middleware::from_fn(identify))
        .layer(middleware::from_fn_with_state(api, share_with_origins))
}

/// The parameters of a query, in order and with repetitions.
type QueryResult = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// The ids of a request, as its headers gave them or as they were made.
#[derive(Clone)]
struct Ids {
    request: String,
    client: Option<String>,
    /// What is answered in the legacy header, which once was both.
    legacy: String,
}

impl Ids {
    fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let read = |name: HeaderName| {
            let text = headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
            text.filter(|text| !text.is_empty()).map(|text| text.into_owned())
        };
        let request = read(REQUEST_ID).unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let (client, legacy) = (read(CLIENT_REQUEST_ID), read(LEGACY_REQUEST_ID));
        let too_long = |id: &String| id.chars().count() > MAX_ID;
        if too_long(&request) || client.iter().chain(&legacy).any(too_long) {
            let line =
                format!("x-request-id, x-ms-client-request-id and x-ms-request-id take {MAX_ID} characters");
            return Err(Failure::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, line));
        }
        let client = client.or_else(|| legacy.clone());
        let legacy = legacy.or_else(|| client.clone()).unwrap_or_else(|| request.clone());
        Ok(Self { request, client, legacy })
    }
}

async fn score_body(State(api): State<Api>, Extension(ids): Extension<Ids>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let answer = async {
        let received = api.intake.receive(&parts.headers, body).await?;
        if !is_json(&parts.headers) {
            let line = "Expects Content-Type to be application/json";
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, line).into());
        }
        let live = chosen(&api)?;
        score(&api, live, received.bytes.clone(), &ids).await
    };
    respond(answer.await)
}

async fn score_query(State(api): State<Api>, Extension(ids): Extension<Ids>, query: QueryResult) -> Response {
    let answer = async {
        let live = chosen(&api)?;
        let Query(query) = query.map_err(|error| Failure::bad_request(error.body_text()))?;
        let body = serde_json::to_vec(&object(query)).map_err(Failure::internal)?;
        score(&api, live, body.into(), &ids).await
    };
    respond(answer.await)
}

async fn describe(State(api): State<Api>, query: QueryResult) -> Response {
    let query = query.map(|Query(query)| query).unwrap_or_default();
    let version = query.iter().find(|(name, _)| name == "version").map_or("2", |(_, version)| version);
    let dialect = match version {
        "2" | "2.0" => swagger::Dialect::Swagger2,
        "3" | "3.0" => swagger::Dialect::OpenApi3,
        _ => {
            let line = format!("Swagger version [{version}] is not valid. Supported versions: [2, 3].");
            return Failure::not_found(line).as_message();
        }
    };
    match chosen(&api) {
        Ok(live) => axum::Json(swagger::describe(dialect, &live.facts)).into_response(),
        Err(failure) => failure.as_message(),
    }
}

/// Why a score has no answer, and whether the model was run.
struct Failed {
    failure: Failure,
    run_failed: bool,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, run_failed: false }
    }
}

impl From<ScoreRefused> for Failed {
    fn from(refused: ScoreRefused) -> Self {
        if let ScoreRefused::Timeout(after) = refused {
            let line = format!("Scoring timeout after {} ms", after.as_millis());
            return Self { failure: Failure::internal(line), run_failed: true };
        }
        let failure = Failure::from(refused);
        Self { run_failed: failure.status == StatusCode::INTERNAL_SERVER_ERROR, failure }
    }
}

async fn score(api: &Api, live: Arc<Live>, body: Bytes, ids: &Ids) -> Result<Response, Failed> {
    let model = live.clone();
    let size = body.len();
    let read = move || Ok(model.counters.reading(|| body::read(&body, &model.facts.signature))?.inputs);
    let inputs = sized(size, read).await?;
    let correlation = ids.client.clone().unwrap_or_else(|| ids.request.clone());
    let scored = api.service.score_on(live, inputs, Some(ids.request.clone()), Some(correlation));
    let answer = scored.await?;
    let computed = answer.scored.computed;
    let size = answer.scored.outputs.iter().map(|(_, tensor)| tensor.len() * 8).sum();
    let mut response = sized(size, move || answer.live.counters.writing(|| write(&answer))).await?;
    // Three digits, for some clients can't read 1.2e-2.
    let milliseconds = format!("{:.3}", computed.as_secs_f64() * 1e3);
    put(response.headers_mut(), RUN_TIME, &milliseconds);
    Ok(response)
}

fn write(answer: &Answer) -> Result<Response, Failure> {
    let body = serde_json::to_vec(&Lone(&answer.scored.outputs));
    Ok(json_response(body.map_err(Failure::internal)?))
}

fn respond(result: Result<Response, Failed>) -> Response {
    let (mut response, run_failed) = match result {
        Ok(response) => (response, false),
        Err(Failed { failure, run_failed }) => (failure.as_message(), run_failed),
    };
    let run_failed = if run_failed { "True" } else { "False" };
    response.headers_mut().insert(RUN_FAILED, HeaderValue::from_static(run_failed));
    response
}

/// The model that answers: the one that is configured, else the only one.
fn chosen(api: &Api) -> Result<Arc<Live>, Failure> {
    api.service.scorer.choose(api.score_model.as_ref()).map_err(|error| match error {
        NoChoice::Refused(refused) => refused.into(),
        NoChoice::None => Failure::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        NoChoice::Several(_) => Failure::bad_request(format!("{error}, by posting to /v2/models/NAME/infer")),
    })
}

/// The parameters of a query as Azure ML reads them: each value as JSON, else as text; a repeated name is a list.
fn object(query: Vec<(String, String)>) -> Map<String, Value> {
    let mut object: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (name, text) in query {
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        object.entry(name).or_default().push(value);
    }
    let only_or_list = |values: Vec<Value>| match <[Value; 1]>::try_from(values) {
        Ok([only]) => only,
        Err(several) => Value::Array(several),
    };
    object.into_iter().map(|(name, values)| (name, only_or_list(values))).collect()
}

/// Whether the content is declared as JSON.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// Takes the ids of a request from its headers, or makes them, and gives them back with the answer.
async fn identify(mut request: Request, next: Next) -> Response {
    let ids = match Ids::of(request.headers()) {
        Ok(ids) => ids,
        Err(failure) => return failure.as_message(),
    };
    let trace = request.headers().get(TRACE_ID).cloned();
    request.extensions_mut().insert(ids.clone());
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    put(headers, REQUEST_ID, &ids.request);
    put(headers, LEGACY_REQUEST_ID, &ids.legacy);
    if let Some(client) = &ids.client {
        put(headers, CLIENT_REQUEST_ID, client);
    }
    if let Some(trace) = trace {
        headers.insert(TRACE_ID, trace);
    }
    put(headers, SERVER_VERSION, concat!("edgewise-agent/", env!("CARGO_PKG_VERSION")));
    response
}

/// Tells browsers which web origins may read the answers.
async fn share_with_origins(State(api): State<Api>, request: Request, next: Next) -> Response {
    let preflight = request.method() == Method::OPTIONS;
    let origin = request.headers().get(header::ORIGIN).cloned();
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let mut response = next.run(request).await;
    let allowed = |origin: &HeaderValue| {
        api.cors_origins.iter().any(|known| known == "*" || known.as_bytes() == origin.as_bytes())
    };
    let Some(origin) = origin.filter(allowed) else { return response };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    if preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        if let Some(asked) = asked {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
        }
    }
    response
}

/// Sets a header; a value that no header can carry is left out.
fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
