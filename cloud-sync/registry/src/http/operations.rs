//! For those who run the registry: is it well, and what does it do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::Api;

/// Longest wait for the database to answer: who asks for our health does not wait much longer.
const DATABASE_PATIENCE: Duration = Duration::from_secs(3);

/// Whether the registry serves, which takes its database, and whether it reaches its broker.
#[utoipa::path(
    get, path = "/health", tag = "operations",
    responses((status = 200, body = Object, description = "it serves; `broker` says whether it reaches its broker"), (status = 503, body = Object, description = "the database is silent"))
)]
pub(super) async fn health(State(api): State<Api>) -> (StatusCode, Json<Value>) {
    let checked = tokio::time::timeout(DATABASE_PATIENCE, api.parts.store.check()).await;
    let serves = matches!(checked, Ok(Ok(())));
    let body = json!({
        "status": if serves { "ok" } else { "unavailable" },
        "version": env!("CARGO_PKG_VERSION"),
        "database": if serves { "ok" } else { "silent" },
        "broker": if api.parts.link.is_online() { "connected" } else { "disconnected" },
    });
    (if serves { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body))
}

/// Counters in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((status = 200, content_type = "text/plain", description = "the counters"))
)]
pub(super) async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    let (worker, session, sink) = (&api.parts.counters, api.parts.link.counters(), api.parts.sink.counters());
    let counters: [(&str, &str, &AtomicU64); 17] = [
        ("mqtt_connects", "Connections made to the broker", &session.connects),
        ("mqtt_failures", "Connections that were lost, and attempts that made none", &session.failures),
        ("mqtt_received_messages", "Messages received", &session.received),
        ("mqtt_received_bytes", "Payload bytes received", &session.received_bytes),
        ("mqtt_sent_messages", "Messages sent", &session.sent),
        ("mqtt_sent_bytes", "Payload bytes sent", &session.sent_bytes),
        ("mqtt_dropped_messages", "Messages dropped before they were looked at", &session.dropped),
        ("messages_malformed", "Messages that are none of the contract", &worker.malformed),
        ("messages_shed", "Messages dropped because their queue was full", &worker.shed),
        ("messages_failed", "Messages that could not be kept or answered", &worker.failed),
        ("pieces_sent", "Pieces of bundles sent to devices", &worker.pieces),
        ("piece_bytes_sent", "Bytes of those pieces", &worker.piece_bytes),
        ("batches", "Batches of rows answered with a receipt", &sink.batches),
        ("batches_early", "Batches that came before the one that they follow", &sink.early),
        ("rows_stored", "Rows stored", &sink.stored),
        ("rows_repeated", "Rows that were stored already", &sink.repeated),
        ("rows_refused", "Rows that can't be decoded or contradict themselves", &sink.refused),
    ];
    let mut text = String::new();
    for (name, help, counter) in counters {
        let value = counter.load(Ordering::Relaxed);
        let name = format!("edgewise_{name}_total");
        text += &format!("# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n");
    }
    let online = u8::from(api.parts.link.is_online());
    text += "# HELP edgewise_mqtt_connected Whether the broker is reached\n# TYPE edgewise_mqtt_connected gauge\n";
    text += &format!("edgewise_mqtt_connected {online}\n");
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}
