//! The HTTP API: its routes, who may use them, and how much they may send. The description of it at
//! `/api/openapi.json` is made from the handlers.
//!
//! Where a token is configured, everything but `/health` asks for it.

mod certificates;
mod data;
mod devices;
mod models;
mod operations;
mod problem;
pub mod server;
mod stream;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use cloud_sync::digest::Digest;
use cloud_sync::session::BrokerUrl;
use tower_http::timeout::TimeoutLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::authority::Authority;
use crate::registry::Registry;
use crate::worker::Parts;

/// Largest body of a request that is not an upload: a command's arguments must fit into a message anyway.
const MAX_JSON_BYTES: usize = 256 * 1024;

/// Longest time for a request that reads or changes records.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What the handlers work with.
#[derive(Debug, Clone)]
pub struct Api {
    /// The models.
    pub registry: Arc<Registry>,
    /// Everything that the MQTT side works with too.
    pub parts: Parts,
    /// Who signs certificates.
    pub authority: Authority,
    /// The broker, as this registry reaches it.
    pub broker: BrokerUrl,
    /// The digest of the token that callers must show.
    pub token: Option<Digest>,
    /// Where exports are put together.
    pub temporary: PathBuf,
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Edgewise registry",
    description = "Models, deployments, devices and captured rows. Errors are RFC 9457 problem details."
))]
struct Description;

/// All routes.
pub fn router(api: Api) -> Router {
    let short = OpenApiRouter::new()
        .routes(routes!(models::list))
        .routes(routes!(models::show, models::label, models::delete))
        .routes(routes!(devices::list))
        .routes(routes!(devices::show))
        .routes(routes!(devices::deploy))
        .routes(routes!(devices::undeploy))
        .routes(routes!(certificates::device))
        .routes(routes!(certificates::broker))
        .routes(routes!(operations::health))
        .routes(routes!(operations::metrics))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, REQUEST_TIMEOUT));
    // These take as long as their bytes or their device; each bounds itself.
    let long = OpenApiRouter::new()
        .routes(routes!(models::register))
        .layer(models::upload_limit())
        .routes(routes!(models::bundle))
        .routes(routes!(devices::command))
        .routes(routes!(data::export));
    let (router, description) =
        OpenApiRouter::with_openapi(Description::openapi()).merge(short).merge(long).split_for_parts();
    let description = description.to_pretty_json().unwrap_or_default();
    let openapi = axum::routing::get(move || async move {
        ([(header::CONTENT_TYPE, "application/json")], description.clone())
    });
    router
        .route("/api/openapi.json", openapi)
        .fallback(|| async {
            problem::response(
                StatusCode::NOT_FOUND,
                "NotFound",
                "there is no such path; see /api/openapi.json",
            )
        })
        .method_not_allowed_fallback(|| async {
            problem::response(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                "that path does not take this method; see /api/openapi.json",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_JSON_BYTES))
        .layer(from_fn_with_state(api.clone(), authorize))
        .with_state(api)
}

async fn authorize(State(api): State<Api>, request: Request, next: Next) -> Response {
    let Some(expected) = api.token else { return next.run(request).await };
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    // Digests are compared, so that the time it takes says nothing about the token.
    if request.uri().path() == "/health" || given.is_some_and(|token| Digest::of(token) == expected) {
        return next.run(request).await;
    }
    let detail = "a token is needed: set EDGEWISE_TOKEN, or send it as `Authorization: Bearer TOKEN`";
    let mut response = problem::response(StatusCode::UNAUTHORIZED, "Unauthorized", detail).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    response
}
