//! Sensor windows on their way to the agent, and predictions beside the truth.

use std::time::Duration;

use bytes::Bytes;
use cloud_sync::session::{self, Event, Options, Outgoing};
use cloud_sync::topic::Qos;
use serde_json::{Value, json};

use super::narrate::{bar, fact, row, thousands};
use crate::client::Client;
use crate::data::Window;
use crate::process::Failure;

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
            subscriptions: vec![(PREDICTION.to_owned(), Qos::AtMostOnce)],
            ..Options::new(broker.parse().map_err(|error| format!("{error}"))?, "demo-sensor")
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
