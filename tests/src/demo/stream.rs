//! Sensor windows on their way to the agent, and predictions beside the truth.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::session::{self, Event, Options, Outgoing, TlsFiles};
use cloud_sync::topic::Qos;
use serde_json::{Value, json};

use super::narrate::{bar, fact, row, thousands};
use crate::data::{MODEL, Window};
use crate::process::{Failure, wait_until};

/// Where the demo's sensor publishes, and where its predictions come out.
pub(super) const SENSOR: &str = "sensors/load";
/// See [`SENSOR`].
pub(super) const PREDICTION: &str = "predictions/load";

/// Windows that are sent over MQTT: enough to see that the route works, each a round trip.
const OVER_MQTT: usize = 100;

/// How long an answer over MQTT may take.
const ANSWER: Duration = Duration::from_secs(20);

/// How many predictions were right.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Score {
    pub(super) total: u64,
    pub(super) right: u64,
}

impl Score {
    pub(super) fn accuracy(&self) -> f64 {
        self.right as f64 / self.total.max(1) as f64
    }

    fn add(&mut self, right: bool) {
        self.total += 1;
        self.right += u64::from(right);
    }
}

/// Sends every window over HTTP; each must be answered by `version`.
pub(super) fn over_http(
    url: &str,
    windows: &[Window],
    labels: &[String],
    version: u64,
) -> Result<Score, Failure> {
    let client = Client::new(url);
    let mut score = Score::default();
    let progress = bar(windows.len());
    for (index, window) in windows.iter().enumerate() {
        let (answered, label) = client.predict(window)?;
        if answered != version {
            return Err(format!("version {answered} answered, not {version}"));
        }
        score.add(label == window.label);
        if index % (windows.len() / 4).max(1) == 0 {
            let name = |label: i64| {
                usize::try_from(label).ok().and_then(|at| labels.get(at)).map_or("?", String::as_str)
            };
            let verdict = if label == window.label { "right" } else { "wrong" };
            progress.suspend(|| {
                row(&format!(
                    "day {index:>4}: predicted {:<20} true {:<20} {verdict}; running accuracy {:.1} %",
                    name(label),
                    name(window.label),
                    score.accuracy() * 100.0
                ));
            });
        }
        progress.set_message(format!("accuracy {:.1} %", score.accuracy() * 100.0));
        progress.inc(1);
    }
    progress.finish_and_clear();
    fact(&format!(
        "HTTP: {} windows, version {version} is right on {} of them, {:.1} %",
        thousands(score.total),
        thousands(score.right),
        score.accuracy() * 100.0
    ));
    Ok(score)
}

/// Publishes windows as a sensor does and reads the predictions from the route's output.
pub(super) fn over_mqtt(broker: &str, windows: &[Window], version: u64) -> Result<Score, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("starting a runtime: {error}"))?;
    let score = runtime.block_on(async {
        let options = Options {
            broker: broker.parse().map_err(|error| format!("{error}"))?,
            client_id: "demo-sensor".to_owned(),
            credentials: None,
            tls: TlsFiles::default(),
            keep_alive: Duration::from_secs(30),
            subscriptions: vec![(PREDICTION.to_owned(), Qos::AtMostOnce)],
            last_will: None,
        };
        let (sender, mut events, driver) = session::open(options).map_err(|error| error.to_string())?;
        let stop = tokio_util::sync::CancellationToken::new();
        let driver = tokio::spawn(driver.run(stop.clone()));
        let mut next = async || {
            let event = tokio::time::timeout(ANSWER, events.recv()).await;
            event.ok().flatten().ok_or_else(|| format!("nothing came on {PREDICTION} within {ANSWER:?}"))
        };
        while !matches!(next().await?, Event::Connected) {}
        let mut score = Score::default();
        for window in windows.iter().take(OVER_MQTT) {
            let body = Bytes::from(json!({"data": [window.load]}).to_string());
            let reading = Outgoing { topic: SENSOR.to_owned(), body, qos: Qos::AtMostOnce, retain: false };
            sender.publish(reading).await.map_err(|error| error.to_string())?;
            let Event::Message(message) = next().await? else {
                return Err("the broker went away".to_owned());
            };
            let answer: Value = serde_json::from_slice(&message.body).map_err(|error| error.to_string())?;
            if answer["version"] != version {
                return Err(format!("version {version} was expected to answer: {answer}"));
            }
            score.add(answer["outputs"]["label"][0] == window.label);
        }
        stop.cancel();
        let _ = driver.await;
        Ok::<_, Failure>(score)
    })?;
    fact(&format!(
        "MQTT: {} windows on {SENSOR}, predictions on {PREDICTION}, {:.1} % right",
        score.total,
        score.accuracy() * 100.0
    ));
    Ok(score)
}

/// Requests that keep flowing while something else happens.
pub(super) struct Background {
    flowed: Arc<Mutex<Flowed>>,
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What came of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Flowed {
    pub(super) by_version: BTreeMap<u64, u64>,
    pub(super) failed: u64,
    pub(super) why: String,
}

impl Flowed {
    pub(super) fn total(&self) -> u64 {
        self.by_version.values().sum()
    }
}

impl Background {
    /// Two clients, each sending one window after the other.
    pub(super) fn start(url: &str, windows: &[Window]) -> Self {
        let (flowed, count, stop) = <(Arc<Mutex<Flowed>>, Arc<AtomicU64>, Arc<AtomicBool>)>::default();
        let client = || {
            let (flowed, count, stop) = (flowed.clone(), count.clone(), stop.clone());
            let (client, windows) = (Client::new(url), windows.to_vec());
            std::thread::spawn(move || {
                for window in windows.iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let result = client.predict(window);
                    let mut flowed = flowed.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok((version, _)) => *flowed.by_version.entry(version).or_default() += 1,
                        Err(why) => {
                            flowed.failed += 1;
                            flowed.why = why;
                        }
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let threads = (0..2).map(|_| client()).collect();
        Self { flowed, count, stop, threads }
    }

    /// Waits until this many requests have been answered.
    pub(super) fn wait_for(&self, requests: u64) -> Result<(), Failure> {
        wait_until(Duration::from_secs(30), || {
            let count = self.count.load(Ordering::Relaxed);
            if count >= requests { Ok(()) } else { Err(format!("only {count} requests were answered")) }
        })
    }

    /// Waits until a version has answered this many requests.
    pub(super) fn wait_for_version(&self, version: u64, requests: u64) -> Result<(), Failure> {
        wait_until(Duration::from_secs(30), || {
            let flowed = self.flowed.lock().unwrap_or_else(PoisonError::into_inner);
            let count = flowed.by_version.get(&version).copied().unwrap_or(0);
            if count >= requests { Ok(()) } else { Err(format!("version {version} answered {count} times")) }
        })
    }

    /// Ends the flow.
    pub(super) fn stop(self) -> Result<Flowed, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| "a client thread panicked".to_owned())?;
        }
        Ok(self.flowed.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// One client of the Open Inference Protocol with one connection that is kept.
struct Client {
    http: ureq::Agent,
    url: String,
}

impl Client {
    fn new(url: &str) -> Self {
        Self { http: ureq::Agent::new_with_defaults(), url: format!("{url}/v2/models/{MODEL}/infer") }
    }

    /// The version that answered, and the class that it predicts.
    fn predict(&self, window: &Window) -> Result<(u64, i64), Failure> {
        let body = json!({"inputs": [{
            "name": "load", "shape": [1, window.load.len()], "datatype": "FP32", "data": window.load,
        }]});
        let failed = |error: ureq::Error| format!("POST {}: {error}", self.url);
        let request = self.http.post(&self.url).header("content-type", "application/json");
        let mut response = request.send(body.to_string()).map_err(failed)?;
        let text = response.body_mut().read_to_string().map_err(failed)?;
        let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let version = answer["model_version"].as_str().and_then(|version| version.parse().ok());
        let outputs = answer["outputs"].as_array().into_iter().flatten();
        let label =
            outputs.filter(|output| output["name"] == "label").find_map(|output| output["data"][0].as_i64());
        version.zip(label).ok_or_else(|| format!("not an answer: {text}"))
    }
}
