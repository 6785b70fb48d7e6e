//! For those who run the registry: is it well, and what does it do.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::Api;

/// Whether the registry serves, and whether it reaches its broker.
#[utoipa::path(
    get, path = "/health", tag = "operations",
    responses((status = 200, body = Object, description = "it serves; `broker` says whether it reaches its broker"))
)]
pub(super) async fn health(State(api): State<Api>) -> Json<Value> {
    Json(json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "broker": if api.parts.link.is_online() { "connected" } else { "disconnected" },
    }))
}

/// Counters in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((status = 200, content_type = "text/plain", description = "the counters"))
)]
pub(super) async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    let (worker, session, sink) = (&api.parts.counters, api.parts.link.counters(), api.parts.sink.counters());
    let counters: [(&str, &str, &AtomicU64); 14] = [
        ("mqtt_connects", "Connections made to the broker", &session.connects),
        ("mqtt_received_messages", "Messages received", &session.received),
        ("mqtt_received_bytes", "Payload bytes received", &session.received_bytes),
        ("mqtt_sent_messages", "Messages sent", &session.sent),
        ("mqtt_sent_bytes", "Payload bytes sent", &session.sent_bytes),
        ("mqtt_dropped_messages", "Messages dropped before they were looked at", &session.dropped),
        ("messages_malformed", "Messages that are none of the contract", &worker.malformed),
        ("messages_shed", "Messages dropped because their queue was full", &worker.shed),
        ("pieces_sent", "Pieces of bundles sent to devices", &worker.pieces),
        ("piece_bytes_sent", "Bytes of those pieces", &worker.piece_bytes),
        ("batches", "Batches of rows answered with a receipt", &sink.batches),
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
