//! Triton's extensions that tell what is served and how it fares: the index of models, their configuration, their statistics.

use std::collections::BTreeMap;
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
use crate::settings::Batching;

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
    /// By rows: runs and their nanoseconds.
    pub(super) batches: BTreeMap<usize, (u64, u64)>,
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
            runs: load(&counters.runs),
            answered: load(&counters.success),
            failed: failed.into_iter().map(load).sum(),
            input_ns,
            queue_ns: nanoseconds(counters.queue.sum()),
            compute_ns: nanoseconds(counters.compute.sum()),
            output_ns,
            all_ns: nanoseconds(counters.request.sum()).saturating_add(input_ns).saturating_add(output_ns),
            batches: counters.batches(),
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
        let of_batch = |(rows, (runs, ns)): (usize, (u64, u64))| {
            json!({
                "batch_size": rows,
                "compute_input": of(runs, 0),
                "compute_infer": of(runs, ns),
                "compute_output": of(runs, 0),
            })
        };
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
        } = statistics;
        json!({
            "name": live.facts.name,
            "version": live.facts.version.to_string(),
            "last_inference": last_ms,
            "inference_count": rows,
            "execution_count": runs,
            "inference_stats": {
                "success": of(answered, all_ns),
                "fail": of(failed, 0),
                "queue": of(answered, queue_ns),
                "compute_input": of(answered, input_ns),
                "compute_infer": of(answered, compute_ns),
                "compute_output": of(answered, output_ns),
            },
            "batch_stats": batches.into_iter().map(of_batch).collect::<Vec<_>>(),
            "memory_usage": [{ "type": "CPU", "id": 0, "byte_size": live.facts.memory_bytes }],
        })
    };
    axum::Json(json!({ "model_stats": models.iter().map(stats).collect::<Vec<_>>() })).into_response()
}

/// As much of Triton's configuration as holds here. Where requests are joined, the rows are no dimension of the shapes, as
/// Triton has it; else shapes are given whole, and the greatest batch is 0.
async fn config(State(api): State<Api>, target: Target) -> Result<Response, Failure> {
    let live = target.find(&api)?;
    let batching = &live.facts.settings.batching;
    let tensor = |spec: &TensorSpec| {
        let dims = dims_beside(batching, spec);
        json!({ "name": spec.name, "data_type": type_name(spec.data_type), "dims": dims })
    };
    let signature = &live.facts.signature;
    let mut config = json!({
        "name": live.facts.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": { "specific": { "versions": [live.facts.version] } },
        "max_batch_size": max_batch_size(batching),
        "input": signature.inputs.iter().map(tensor).collect::<Vec<_>>(),
        "output": signature.outputs.iter().map(tensor).collect::<Vec<_>>(),
    });
    if let (true, Some(config)) = (batching.is_on(), config.as_object_mut()) {
        let batcher = json!({
            "preferred_batch_size": batching.preferred,
            "max_queue_delay_microseconds": u64::try_from(batching.max_delay.as_micros()).unwrap_or(u64::MAX),
        });
        config.insert("dynamic_batching".to_owned(), batcher);
    }
    Ok(axum::Json(config).into_response())
}

/// The lengths of its dimensions; -1 for a free one.
pub(super) fn dims(spec: &TensorSpec) -> Vec<i64> {
    spec.shape
        .iter()
        .map(|length| length.and_then(|length| i64::try_from(length).ok()).unwrap_or(-1))
        .collect()
}

/// Its lengths in a configuration, in which the rows of a batch are no dimension.
pub(super) fn dims_beside(batching: &Batching, spec: &TensorSpec) -> Vec<i64> {
    dims(spec).into_iter().skip(usize::from(batching.is_on())).collect()
}

/// The greatest batch, as a configuration has it: 0 where there is none.
pub(super) fn max_batch_size(batching: &Batching) -> u32 {
    if batching.is_on() { batching.max_rows } else { 0 }
}

fn type_name(data_type: DataType) -> String {
    match data_type {
        DataType::String => "TYPE_STRING".to_owned(),
        other => format!("TYPE_{}", other.oip_name()),
    }
}
