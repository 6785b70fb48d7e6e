//! The way of spans to a collector: in batches over OTLP/HTTP, again where the collector says so or is not there.
//!
//! Invariants:
//! - One batch at a time is under way, and it is given up after [`ATTEMPTS`]; whatever waits behind it waits in a bounded queue.
//! - Every span ends in one of the counters, but for those that a stop leaves behind.
//! - At a stop what waits is told within [`FAREWELL`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use ureq::http::{StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::{Counters, Record, otlp};
use crate::exposition::{Exposition, Kind};
use crate::log::Seldom;
use crate::metrics::Source;

/// Requests in a batch: with their parts as many spans as OpenTelemetry's own batch processor sends, some 300 KiB.
const BATCH: usize = 128;

/// How long a span waits for others, as in OpenTelemetry's own batch processor.
const INTERVAL: Duration = Duration::from_secs(5);

/// Longest time that a collector may take to answer, as OTLP's exporters have it by default.
const ANSWER: Duration = Duration::from_secs(10);

/// How often a batch is sent at most, and the pauses between: a collector that restarts is back by then.
const ATTEMPTS: u32 = 5;
/// See [`ATTEMPTS`]; it doubles each time.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest pause, whatever the collector asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long the last spans may take to leave at a stop, within what the agent has.
const FAREWELL: Duration = Duration::from_secs(1);

/// Most of an answer that is read: it says no more than how many spans were refused, and why.
const ANSWER_BYTES: u64 = 16 * 1024;

/// Sends spans.
pub struct Exporter {
    agent: ureq::Agent,
    url: String,
    device: String,
    waiting: mpsc::Receiver<Record>,
    counters: Arc<Counters>,
    told: Seldom,
}

/// What a collector made of a batch.
enum Outcome {
    /// It has it, but for so many spans.
    Taken { rejected: u64 },
    /// It will never take it.
    Refused(String),
    /// It may take it later: not before so long.
    Later(String, Option<Duration>),
}

impl Exporter {
    pub(super) fn new(
        endpoint: &str,
        device: &str,
        waiting: mpsc::Receiver<Record>,
        counters: Arc<Counters>,
    ) -> Result<Self, String> {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("edgewise-agent/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(ANSWER));
        if endpoint.starts_with("https:") {
            let authorities = cloud_sync::session::system_authorities().map_err(|error| error.to_string())?;
            let authorities: Vec<_> =
                authorities.iter().map(|authority| Certificate::from_der(authority).to_owned()).collect();
            let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&authorities)).build();
            config = config.tls_config(tls);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            url: format!("{}/v1/traces", endpoint.trim_end_matches('/')),
            device: device.to_owned(),
            waiting,
            counters,
            told: Seldom::default(),
        })
    }

    /// What writes its metrics.
    pub fn source(&self) -> Source {
        let counters = self.counters.clone();
        Arc::new(move |exposition: &mut Exposition| {
            let help = "Spans that the collector took.";
            let sent = counters.sent.load(Ordering::Relaxed);
            exposition.family("edgewise_trace_spans_sent_total", Kind::Counter, help).sample(&[], sent);
            let help = "Spans given up, by reason.";
            let mut dropped = exposition.family("edgewise_trace_spans_dropped_total", Kind::Counter, help);
            for (reason, count) in [
                ("queue", &counters.queue),
                ("refused", &counters.refused),
                ("unreachable", &counters.unreachable),
            ] {
                dropped.sample(&[("reason", reason)], count.load(Ordering::Relaxed));
            }
        })
    }

    /// Sends what comes until `stop`; then what waits.
    pub async fn run(self, stop: CancellationToken) {
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            () = self.tell(&stop) => {}
            () = late => tracing::warn!("the collector of traces takes too long; the last spans are left behind"),
        }
    }

    async fn tell(mut self, stop: &CancellationToken) {
        let mut batch = Vec::new();
        while !stop.is_cancelled() && !self.waiting.is_closed() {
            stop.run_until_cancelled(self.gather(&mut batch)).await;
            if !batch.is_empty() {
                self.send(std::mem::take(&mut batch), stop).await;
            }
        }
        self.waiting.close();
        while self.waiting.recv_many(&mut batch, BATCH).await > 0 {
            self.send(std::mem::take(&mut batch), stop).await;
        }
    }

    /// Waits for a span, and then a while for others.
    async fn gather(&mut self, batch: &mut Vec<Record>) {
        self.waiting.recv_many(batch, BATCH).await;
        let fill = async {
            while batch.len() < BATCH && self.waiting.recv_many(batch, BATCH - batch.len()).await > 0 {}
        };
        // Most often it ends by the clock.
        let _ = tokio::time::timeout(INTERVAL, fill).await;
    }

    /// Sends a batch until it is taken or given up; after `stop`, once.
    async fn send(&self, batch: Vec<Record>, stop: &CancellationToken) {
        let spans: u64 = batch.iter().map(Record::spans).sum();
        let body = bytes::Bytes::from(otlp::body(&self.device, &batch));
        drop(batch);
        let mut pause = PAUSE;
        for attempt in 1..=ATTEMPTS {
            let (why, after) = match self.post(body.clone()).await {
                Outcome::Taken { rejected } => {
                    let rejected = rejected.min(spans);
                    self.counters.sent.fetch_add(spans - rejected, Ordering::Relaxed);
                    self.counters.refused.fetch_add(rejected, Ordering::Relaxed);
                    return;
                }
                Outcome::Refused(why) => {
                    self.counters.refused.fetch_add(spans, Ordering::Relaxed);
                    return self.complain(&why);
                }
                Outcome::Later(why, after) => (why, after),
            };
            self.complain(&why);
            let last = attempt == ATTEMPTS || stop.is_cancelled();
            let wait = tokio::time::sleep(after.unwrap_or(pause).min(LONGEST_PAUSE));
            if last || stop.run_until_cancelled(wait).await.is_none() {
                break;
            }
            pause *= 2;
        }
        self.counters.unreachable.fetch_add(spans, Ordering::Relaxed);
    }

    fn complain(&self, why: &str) {
        if let Some(more) = self.told.again() {
            tracing::warn!(collector = self.url, why, more, "spans could not be sent");
        }
    }

    async fn post(&self, body: bytes::Bytes) -> Outcome {
        let (agent, url) = (self.agent.clone(), self.url.clone());
        let posted = tokio::task::spawn_blocking(move || post(&agent, &url, &body)).await;
        posted.unwrap_or_else(|error| Outcome::Refused(error.to_string()))
    }
}

fn post(agent: &ureq::Agent, url: &str, body: &[u8]) -> Outcome {
    let request = agent.post(url).header(header::CONTENT_TYPE, "application/json");
    let mut response = match request.send(body) {
        Ok(response) => response,
        Err(error) => return Outcome::Later(error.to_string(), None),
    };
    let status = response.status();
    let answer = response.body_mut().with_config().limit(ANSWER_BYTES).read_to_string().unwrap_or_default();
    match status {
        status if status.is_success() => Outcome::Taken { rejected: rejected(&answer) },
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            // A date is possible there, too; the usual pause does then.
            let after = response.headers().get(header::RETRY_AFTER).and_then(|after| after.to_str().ok());
            let after = after.and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
            Outcome::Later(format!("the collector answers {status}"), after)
        }
        status => Outcome::Refused(format!("the collector answers {status}")),
    }
}

/// How many spans of a batch that was taken were not.
fn rejected(answer: &str) -> u64 {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Answer {
        partial_success: Partial,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Partial {
        rejected_spans: serde_json::Value,
    }
    let answer: Answer = serde_json::from_str(answer).unwrap_or_default();
    match answer.partial_success.rejected_spans {
        // As text by the standard, as a number by some.
        serde_json::Value::String(text) => text.parse().unwrap_or_default(),
        number => number.as_u64().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// A collector that answers its requests with these, one after the other; gives how many spans each told of.
    fn collector(answers: Vec<&'static str>) -> (String, std::thread::JoinHandle<Vec<usize>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serve = move || {
            let take = |answer: &str| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    if line == "\r\n" {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().len()
            };
            answers.into_iter().map(take).collect()
        };
        (url, std::thread::spawn(serve))
    }

    #[tokio::test]
    async fn what_a_collector_puts_off_is_sent_again_and_what_it_refuses_is_counted() {
        const LATER: &str =
            "HTTP/1.1 503 Later\r\nretry-after: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        const PARTLY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 41\r\nconnection: close\r\n\r\n\
                              {\"partialSuccess\":{\"rejectedSpans\":\"1\"}} ";
        const BAD: &str = "HTTP/1.1 400 Bad\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let (url, collector) = collector(vec![LATER, PARTLY, BAD]);
        let (queue, waiting) = mpsc::channel(1);
        let counters: Arc<Counters> = Arc::default();
        let exporter = Exporter::new(&url, "bench", waiting, counters.clone()).unwrap();
        let parts =
            vec![("queue", Duration::ZERO..Duration::ZERO), ("compute", Duration::ZERO..Duration::ZERO)];
        let stop = CancellationToken::new();
        exporter.send(vec![Record { parts, ..Record::default() }], &stop).await;
        let count =
            || [&counters.sent, &counters.refused, &counters.unreachable].map(|c| c.load(Ordering::Relaxed));
        assert_eq!(count(), [2, 1, 0]);
        // What waits at the stop is told, too.
        queue.try_send(Record::default()).unwrap();
        stop.cancel();
        exporter.run(stop.clone()).await;
        assert_eq!(count(), [2, 2, 0]);
        assert_eq!(collector.join().unwrap(), [3, 3, 1]);
        assert!(queue.try_send(Record::default()).is_err(), "nothing is taken that nobody will tell");
    }
}
