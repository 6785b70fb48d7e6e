//! `/metrics`: what is counted, in the text format of Prometheus, under the names that Triton's dashboards know.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use crate::exposition::{Exposition, Kind};
use crate::scorer::{Counters, Live};

/// Answers of the server by status.
#[derive(Debug, Default)]
pub(super) struct HttpCounters(Mutex<BTreeMap<u16, u64>>);

impl HttpCounters {
    pub(super) fn answered(&self, status: StatusCode) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(status.as_u16()).or_default() += 1;
    }
}

pub(super) async fn show(State(api): State<Api>) -> Response {
    let mut exposition = Exposition::default();
    of_models(&api.service.scorer.all(), &mut exposition);
    let answers = api.counters.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut family =
        exposition.family("edgewise_http_responses_total", Kind::Counter, "Answers over HTTP by status.");
    for (status, count) in answers {
        family.sample(&[("status", &status.to_string())], count);
    }
    let help = "Connections that were idle and made way for others.";
    let given_up = api.places.given_up();
    exposition.family("edgewise_http_connections_given_up_total", Kind::Counter, help).sample(&[], given_up);
    (api.metrics)(&mut exposition);
    let format = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (format, exposition.into_text()).into_response()
}

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
    let mut counter = |name, help, value: &dyn Fn(&Counters) -> u64| {
        per_model(name, Kind::Counter, help, &|live| value(&live.counters));
    };
    counter("nv_inference_request_success", "Requests that were scored.", &|c| load(&c.success));
    counter("nv_inference_count", "Rows that were scored.", &|c| load(&c.rows));
    counter("nv_inference_exec_count", "Runs of the model.", &|c| load(&c.runs));
    let request = |c: &Counters| load(&c.queue_us) + load(&c.compute_us);
    counter("nv_inference_request_duration_us", "Time of requests in queue and engine, summed.", &request);
    counter("nv_inference_queue_duration_us", "Time of requests in the queue, summed.", &|c| {
        load(&c.queue_us)
    });
    counter("nv_inference_compute_infer_duration_us", "Time of requests in the engine, summed.", &|c| {
        load(&c.compute_us)
    });
    let gauge = Kind::Gauge;
    let pending = |live: &Live| load(&live.counters.pending);
    per_model("nv_inference_pending_request_count", gauge, "Requests queued or being scored.", &pending);
    let memory = |live: &Live| live.facts.memory_bytes;
    per_model("edgewise_model_memory_bytes", gauge, "Memory that loading the model took.", &memory);

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
