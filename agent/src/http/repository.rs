//! Triton's extensions that tell what is served and how it fares: the index of models, their configuration, their statistics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use engine::{DataType, TensorSpec};
use serde_json::{Value, json};

use super::Api;
use super::failure::Failure;
use super::inference::{PLATFORM, Target};
use crate::scorer::Live;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v2/repository/index", post(index))
        .route("/v2/models/stats", get(all))
        .route("/v2/models/{model}/stats", get(one))
        .route("/v2/models/{model}/versions/{version}/stats", get(one))
        .route("/v2/models/{model}/config", get(config))
        .route("/v2/models/{model}/versions/{version}/config", get(config))
}

/// What a version has done since it went live. Times are summed.
pub(super) struct Statistics {
    /// Milliseconds since 1970; 0 for never.
    pub(super) last_ms: u64,
    pub(super) rows: u64,
    /// Runs of the model.
    pub(super) runs: u64,
    pub(super) answered: u64,
    pub(super) failed: u64,
    pub(super) input_ns: u64,
    pub(super) queue_ns: u64,
    pub(super) compute_ns: u64,
    pub(super) output_ns: u64,
    /// From inputs that are read to outputs that are written.
    pub(super) all_ns: u64,
}

impl Statistics {
    pub(super) fn of(live: &Live) -> Self {
        let counters = &live.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let (input_ns, output_ns) = (load(&counters.input_ns), load(&counters.output_ns));
        let failed = [&counters.failed, &counters.rejected, &counters.canceled, &counters.invalid];
        Self {
            last_ms: load(&counters.last_ms),
            rows: load(&counters.rows),
            runs: load(&counters.success),
            answered: load(&counters.success),
            failed: failed.into_iter().map(load).sum(),
            input_ns,
            queue_ns: nanoseconds(counters.queue.sum()),
            compute_ns: nanoseconds(counters.compute.sum()),
            output_ns,
            all_ns: nanoseconds(counters.request.sum()).saturating_add(input_ns).saturating_add(output_ns),
        }
    }
}

async fn index(State(api): State<Api>) -> Response {
    let entry = |live: &Arc<Live>| {
        let version = live.facts.version.to_string();
        json!({ "name": live.facts.name, "version": version, "state": "READY", "reason": "" })
    };
    let entries: Vec<Value> = api.service.scorer.all().iter().map(entry).collect();
    axum::Json(entries).into_response()
}

async fn all(State(api): State<Api>) -> Response {
    of_all(&api.service.scorer.all())
}

async fn one(State(api): State<Api>, target: Target) -> Result<Response, Failure> {
    Ok(of_all(&[target.find(&api)?]))
}

fn of_all(models: &[Arc<Live>]) -> Response {
    let stats = |live: &Arc<Live>| {
        let statistics = Statistics::of(live);
        let of = |count: u64, ns: u64| json!({ "count": count, "ns": ns });
        let Statistics { answered, failed, input_ns, queue_ns, compute_ns, output_ns, all_ns, .. } =
            statistics;
        json!({
            "name": live.facts.name,
            "version": live.facts.version.to_string(),
            "last_inference": statistics.last_ms,
            "inference_count": statistics.rows,
            "execution_count": statistics.runs,
            "inference_stats": {
                "success": of(answered, all_ns),
                "fail": of(failed, 0),
                "queue": of(answered, queue_ns),
                "compute_input": of(answered, input_ns),
                "compute_infer": of(answered, compute_ns),
                "compute_output": of(answered, output_ns),
            },
            "batch_stats": [],
            "memory_usage": [{ "type": "CPU", "id": 0, "byte_size": live.facts.memory_bytes }],
        })
    };
    axum::Json(json!({ "model_stats": models.iter().map(stats).collect::<Vec<_>>() })).into_response()
}

/// As much of Triton's configuration as holds here. Shapes are given whole, so the greatest batch is 0.
async fn config(State(api): State<Api>, target: Target) -> Result<Response, Failure> {
    let live = target.find(&api)?;
    let tensor = |spec: &TensorSpec| json!({ "name": spec.name, "data_type": type_name(spec.data_type), "dims": dims(spec) });
    let signature = &live.facts.signature;
    let config = json!({
        "name": live.facts.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": { "specific": { "versions": [live.facts.version] } },
        "max_batch_size": 0,
        "input": signature.inputs.iter().map(tensor).collect::<Vec<_>>(),
        "output": signature.outputs.iter().map(tensor).collect::<Vec<_>>(),
    });
    Ok(axum::Json(config).into_response())
}

/// The lengths of its dimensions; -1 for a free one.
pub(super) fn dims(spec: &TensorSpec) -> Vec<i64> {
    spec.shape
        .iter()
        .map(|length| length.and_then(|length| i64::try_from(length).ok()).unwrap_or(-1))
        .collect()
}

fn type_name(data_type: DataType) -> String {
    match data_type {
        DataType::String => "TYPE_STRING".to_owned(),
        other => format!("TYPE_{}", other.oip_name()),
    }
}
