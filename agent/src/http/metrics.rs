//! `/metrics`: what is counted, in the text format of Prometheus, under the names that Triton's dashboards know.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use crate::scorer::{Counters, Live};

/// Metrics in the text format, a family at a time.
#[derive(Debug, Default)]
pub struct Exposition(String);

/// What a metric does over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until a restart.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// The samples of one metric.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl Exposition {
    /// Begins a metric. All its samples must follow before the next one begins, and a name comes once.
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        let text = &mut self.0;
        append(text, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Family { text, name }
    }

    /// The text so far.
    pub fn into_text(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// Adds a sample. Label values may be any text.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.text.push_str(self.name);
        for (position, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let before = if position == 0 { '{' } else { ',' };
            append(self.text, format_args!("{before}{label}=\"{value}\""));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        append(self.text, format_args!("{after} {value}\n"));
        self
    }
}

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
    of_models(&api.sources.service.scorer.all(), &mut exposition);
    let answers = api.counters.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut family =
        exposition.family("edgewise_http_responses_total", Kind::Counter, "Answers over HTTP by status.");
    for (status, count) in answers {
        family.sample(&[("status", &status.to_string())], count);
    }
    (api.sources.metrics)(&mut exposition);
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
    counter("nv_inference_exec_count", "Runs of the model.", &|c| load(&c.success));
    let request = |c: &Counters| load(&c.queue_us) + load(&c.compute_us);
    counter("nv_inference_request_duration_us", "Time of requests in queue and engine, summed.", &request);
    counter("nv_inference_queue_duration_us", "Time of requests in the queue, summed.", &|c| load(&c.queue_us));
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

fn append(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string can't fail.
    let _ = text.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut exposition = Exposition::default();
        exposition.family("m", Kind::Gauge, "two\nlines").sample(&[("a", "x\"y\\z\nw"), ("b", "")], 1.5);
        exposition.family("n", Kind::Counter, "none").sample(&[], 2);
        let expected = concat!(
            "# HELP m two\\nlines\n# TYPE m gauge\nm{a=\"x\\\"y\\\\z\\nw\",b=\"\"} 1.5\n",
            "# HELP n none\n# TYPE n counter\nn 2\n"
        );
        assert_eq!(exposition.into_text(), expected);
    }
}
