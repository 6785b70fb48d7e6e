//! `/metrics`: what is counted, in the text format of Prometheus, under the names that Triton's dashboards know.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use super::failure::Failure;
use super::repository::Statistics;
use crate::exposition::{Exposition, Kind};
use crate::histogram::Histogram;
use crate::scorer::{Counters, Live};

/// Answers of the server by status, and those of calls over gRPC, whose status over HTTP is always 200, by their own.
#[derive(Debug, Default)]
pub(super) struct HttpCounters {
    statuses: Counts<u16>,
    codes: Counts<&'static str>,
}

type Counts<K> = Mutex<BTreeMap<K, u64>>;

impl HttpCounters {
    pub(super) fn answered(&self, status: StatusCode) {
        count(&self.statuses, status.as_u16());
    }

    /// A call over gRPC was answered so.
    pub(super) fn called(&self, code: &'static str) {
        count(&self.codes, code);
    }
}

fn count<K: Ord>(counts: &Counts<K>, key: K) {
    *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
}

fn read<K: Clone>(counts: &Counts<K>) -> BTreeMap<K, u64> {
    counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

pub(super) async fn show(State(api): State<Api>) -> Response {
    // The machine's own figures are read from many small files.
    match tokio::task::spawn_blocking(move || write(&api)).await {
        Ok(text) => {
            let format = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
            (format, text).into_response()
        }
        Err(error) => Failure::internal(error).as_message(),
    }
}

fn write(api: &Api) -> String {
    let mut exposition = Exposition::default();
    of_models(&api.service.scorer.all(), &mut exposition);
    let mut family =
        exposition.family("edgewise_http_responses_total", Kind::Counter, "Answers over HTTP by status.");
    for (status, count) in read(&api.counters.statuses) {
        family.sample(&[("status", &status.to_string())], count);
    }
    let mut family =
        exposition.family("edgewise_grpc_responses_total", Kind::Counter, "Answers over gRPC by code.");
    for (code, count) in read(&api.counters.codes) {
        family.sample(&[("code", code)], count);
    }
    let help = "Connections that were idle and made way for others.";
    let given_up = api.places.given_up();
    exposition.family("edgewise_http_connections_given_up_total", Kind::Counter, help).sample(&[], given_up);
    (api.metrics)(&mut exposition);
    exposition.into_text()
}

type Count = fn(&Statistics) -> u64;
type Spread = fn(&Counters) -> &Histogram;

/// What [`Statistics`] count, by Triton's names.
const COUNTERS: [(&str, &str, Count); 8] = [
    ("nv_inference_request_success", "Requests that were scored.", |s| s.answered),
    ("nv_inference_count", "Rows that were scored.", |s| s.rows),
    ("nv_inference_exec_count", "Runs of the model.", |s| s.runs),
    ("nv_inference_request_duration_us", "Time of requests, summed.", |s| s.all_ns / 1000),
    ("nv_inference_queue_duration_us", "Time of requests in the queue, summed.", |s| s.queue_ns / 1000),
    ("nv_inference_compute_input_duration_us", "Time that reading inputs took, summed.", |s| {
        s.input_ns / 1000
    }),
    ("nv_inference_compute_infer_duration_us", "Time of requests in the engine, summed.", |s| {
        s.compute_ns / 1000
    }),
    ("nv_inference_compute_output_duration_us", "Time that writing outputs took, summed.", |s| {
        s.output_ns / 1000
    }),
];

/// How times spread, in seconds.
const HISTOGRAMS: [(&str, &str, Spread); 3] = [
    ("edgewise_request_seconds", "Time from the inputs of a request to its outputs.", |c| &c.request),
    ("edgewise_queue_seconds", "Time of a request in the queue.", |c| &c.queue),
    ("edgewise_compute_seconds", "Time of a request in the engine.", |c| &c.compute),
];

/// Counted from when a version went live; a swap begins anew, under the new version's label.
fn of_models(models: &[Arc<Live>], exposition: &mut Exposition) {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut per_model = |name: &str, kind: Kind, help: &str, value: &dyn Fn(&Live) -> u64| {
        let mut family = exposition.family(name, kind, help);
        for live in models {
            let version = live.facts.version.to_string();
            let labels = [("model", live.facts.name.as_str()), ("version", &version)];
            family.sample(&labels, value(live));
        }
    };
    for (name, help, value) in COUNTERS {
        per_model(name, Kind::Counter, help, &|live| value(&Statistics::of(live)));
    }
    let gauge = Kind::Gauge;
    let pending = |live: &Live| load(&live.counters.pending);
    per_model("nv_inference_pending_request_count", gauge, "Requests queued or being scored.", &pending);
    let memory = |live: &Live| live.facts.memory_bytes;
    per_model("edgewise_model_memory_bytes", gauge, "Memory that loading the model took.", &memory);

    for (name, help, of) in HISTOGRAMS {
        let mut family = exposition.family(name, Kind::Histogram, help);
        for live in models {
            let version = live.facts.version.to_string();
            let labels = [("model", live.facts.name.as_str()), ("version", &version)];
            family.histogram(&labels, of(&live.counters));
        }
    }

    let help = "Requests that were not scored.";
    let mut family = exposition.family("nv_inference_request_failure", Kind::Counter, help);
    for live in models {
        let (counters, version) = (&live.counters, live.facts.version.to_string());
        for (reason, count) in [
            ("REJECTED", &counters.rejected),
            ("CANCELED", &counters.canceled),
            ("BACKEND", &counters.failed),
            ("OTHER", &counters.invalid),
        ] {
            let model = ("model", live.facts.name.as_str());
            family.sample(&[model, ("version", &version), ("reason", reason)], load(count));
        }
    }
    let mut family = exposition.family("edgewise_model_info", Kind::Gauge, "What runs each model; always 1.");
    for live in models {
        let (facts, version) = (&live.facts, live.facts.version.to_string());
        let labels = [
            ("model", facts.name.as_str()),
            ("version", &version),
            ("engine", &facts.engine),
            ("provider", &facts.provider),
            ("digest", &facts.digest.to_string()),
        ];
        family.sample(&labels, 1);
    }
}
