//! What is answered where, and what each request passes on its way.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use cloud_sync::name::ModelName;
use tokio::sync::watch;

use super::failure::Failure;
use super::intake::Intake;
use super::keys::Keys;
use super::metrics::HttpCounters;
use super::places::{Place, Places};
use super::{Options, Readiness, azure, grpc, inference, metrics, repository, spans};
use crate::metrics::Source;
use crate::service::Service;
use crate::trace;

/// What is answered without a key: whoever watches the agent asks for it.
const OPEN: [&str; 3] = ["/", "/v2/health/live", "/v2/health/ready"];

const METRICS: &str = "/metrics";

/// What every handler shares.
pub(super) struct Shared {
    pub(super) service: Service,
    pub(super) readiness: watch::Receiver<Readiness>,
    /// The agent's own metrics, beside those of models and server.
    pub(super) metrics: Source,
    pub(super) intake: Intake,
    pub(super) keys: Option<Arc<Keys>>,
    pub(super) places: Places,
    pub(super) counters: HttpCounters,
    pub(super) score_model: Option<ModelName>,
    pub(super) cors_origins: Vec<String>,
}

pub(super) type Api = Arc<Shared>;

/// All that is answered.
pub(super) fn router(
    options: &Options,
    keys: Option<Arc<Keys>>,
    places: Places,
    service: Service,
    readiness: watch::Receiver<Readiness>,
    metrics: Source,
) -> Router {
    let shared = Arc::new(Shared {
        service,
        readiness,
        metrics,
        intake: Intake::new(options.max_body_bytes, options.max_held_bytes, options.read_timeout),
        keys,
        places,
        counters: HttpCounters::default(),
        score_model: options.score_model.clone(),
        cors_origins: options.cors_origins.clone(),
    });
    Router::new()
        .merge(inference::routes())
        .merge(repository::routes())
        .merge(grpc::routes())
        .merge(azure::routes(shared.clone()))
        .route(METRICS, get(metrics::show))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(shared.clone(), count))
        .with_state(shared)
}

/// What each request passes: its place, the key, the share of the memory, the count. It has a span, unless it only asks how
/// the agent fares.
async fn count(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let place = request.extensions_mut().remove::<Option<Arc<Place>>>().flatten();
    let visit = place.map(|place| place.visit());
    if let Some(visit) = &visit {
        request = visit.watch(request);
    }
    let uri = request.uri().clone();
    let is_open = OPEN.contains(&uri.path());
    let watched = is_open || uri.path() == METRICS;
    let span = if watched { None } else { spans::begin(&api.service.tracer, &request) };
    let work = async {
        let response = match &api.keys {
            // A page's browser asks what it may before it says who it is.
            Some(keys)
                if !is_open && request.method() != Method::OPTIONS && !keys.admit(request.headers()) =>
            {
                answer_for(&uri, &Failure::unauthorized().closing())
            }
            _ => next.run(request).await,
        };
        let response = api.intake.charge(response).unwrap_or_else(|failure| answer_for(&uri, &failure));
        trace::current(|span| spans::end(span, &uri, &response));
        response
    };
    let response = trace::within(span, work).await;
    drop(visit);
    api.counters.answered(response.status());
    if let Some(code) = grpc::code(&uri, &response) {
        api.counters.called(grpc::name(code));
    }
    response
}

async fn unknown_path(uri: Uri) -> Response {
    let line = format!("there is nothing at {}", uri.path());
    answer_for(&uri, &Failure::not_found(line))
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> Response {
    answer_for(&uri, &Failure::method(&method, uri.path()))
}

/// An error in the form that callers of this path know.
fn answer_for(uri: &Uri, failure: &Failure) -> Response {
    match uri.path() {
        path if path.starts_with(grpc::SERVICE) => grpc::status(failure).into_http(),
        path if path.starts_with("/v2") => failure.as_error(),
        _ => failure.as_message(),
    }
}

pub(super) fn json(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}
