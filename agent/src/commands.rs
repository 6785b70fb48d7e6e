//! What the cloud can ask of a device: one table for every way that a command can come.
//!
//! Invariant: an id is run once, also when it is delivered again or the agent was restarted meanwhile; the
//! answer is given again. See [`once`].

pub mod once;
pub mod serve;

use std::time::Duration;

use cloud_sync::contract::{Collect, Command, Ledger, Reply};
use cloud_sync::limits::bounded_text;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use crate::body;
use crate::clock::{EARLIEST_MS, wall_ms};
use crate::deploy::driver::Order;
use crate::health::Reporter;
use crate::log::LogLevel;
use crate::scorer::ScoreRefused;
use crate::service::{Request, Service};
use crate::trace;

/// Longest time that a command may take, whatever its deadline says: the cloud waits no longer.
const LONGEST: Duration = Duration::from_secs(600);

/// The commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Ping,
    State,
    Score,
    Collect,
    Rollback,
    LogLevel,
    Flush,
}

impl Name {
    const ALL: [(&str, Self); 7] = [
        ("ping", Self::Ping),
        ("state", Self::State),
        ("score", Self::Score),
        ("collect", Self::Collect),
        ("rollback", Self::Rollback),
        ("log-level", Self::LogLevel),
        ("flush", Self::Flush),
    ];
}

/// Runs commands. Cheap to clone.
#[derive(Clone)]
pub struct Commands {
    /// Scores.
    pub service: Service,
    /// Tells the deployments what to do.
    pub orders: mpsc::Sender<Order>,
    /// Knows the device's state.
    pub reporter: Reporter,
    /// What is collected now.
    pub collect: watch::Receiver<Collect>,
    /// The rows' whereabouts.
    pub ledger: watch::Receiver<Ledger>,
    /// Makes rows leave at once; see [`crate::upload::Uploader::flush`].
    pub flush: watch::Sender<u64>,
    /// The log.
    pub log_level: LogLevel,
}

/// A status as in HTTP (200, 400, 404, 409 or 500), and the result or `{"error": …}`.
pub type Answer = (u16, Value);

impl Commands {
    /// Runs a command and answers it.
    pub async fn run(&self, command: &Command) -> Reply {
        let now = wall_ms();
        // A clock that is surely wrong can't tell what is left.
        let left = match now < EARLIEST_MS {
            true => LONGEST,
            false => Duration::from_millis(command.deadline.saturating_sub(now)).min(LONGEST),
        };
        let (status, result) = self.perform(&command.name, &command.arguments, left).await;
        Reply { id: command.id.clone(), status, result }
    }

    /// Does what a command says; what waits for something else waits no longer than `left`.
    pub async fn perform(&self, name: &str, arguments: &Map<String, Value>, left: Duration) -> Answer {
        let Some((_, name)) = Name::ALL.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = Name::ALL.iter().map(|(known, _)| *known).collect();
            return wrong(
                404,
                format!("unknown command {:?}; known are: {}", bounded_text(name), known.join(", ")),
            );
        };
        let result = match name {
            Name::Ping => Ok((200, json!({"pong": true, "agent": env!("CARGO_PKG_VERSION")}))),
            Name::State => self.state(),
            Name::Score => self.score(arguments).await,
            Name::Collect => self.collect(arguments).await,
            Name::Rollback => self.rollback(arguments).await,
            Name::LogLevel => self.log_level(arguments),
            Name::Flush => self.flush(left).await,
        };
        result.unwrap_or_else(|refused| refused)
    }

    fn state(&self) -> Result<Answer, Answer> {
        let reported = self.reporter.reported();
        serde_json::to_value(reported)
            .map(|state| (200, state))
            .map_err(|error| wrong(500, error.to_string()))
    }

    async fn score(&self, arguments: &Map<String, Value>) -> Result<Answer, Answer> {
        let model = text(arguments, "model")?;
        let live = self.service.scorer.find(&model, None).map_err(refused)?;
        let mut body = arguments.clone();
        body.remove("model");
        let bytes = serde_json::to_vec(&body).map_err(|error| wrong(500, error.to_string()))?;
        let body =
            body::read(&bytes, &live.facts.signature).map_err(|error| wrong(400, error.to_string()))?;
        let request = Request {
            model: &model,
            version: None,
            inputs: body.inputs,
            request_id: body.id,
            correlation_id: None,
        };
        let span = self.service.tracer.message("commands/score", body.traceparent.as_deref());
        let answer = trace::attempt(span, self.service.score(request)).await.map_err(refused)?;
        let prediction = serde_json::to_value(body::Prediction(&answer));
        prediction.map(|value| (200, value)).map_err(|error| wrong(500, error.to_string()))
    }

    async fn collect(&self, arguments: &Map<String, Value>) -> Result<Answer, Answer> {
        let mut collect = *self.collect.borrow();
        for (key, value) in arguments {
            match (key.as_str(), value) {
                ("enabled", Value::Bool(enabled)) => collect.enabled = *enabled,
                ("enabled", Value::String(word)) if word == "on" => collect.enabled = true,
                ("enabled", Value::String(word)) if word == "off" => collect.enabled = false,
                ("rate", Value::Number(rate)) if rate.as_f64().is_some_and(|r| (0.0..=1.0).contains(&r)) => {
                    collect.rate = rate.as_f64().unwrap_or(collect.rate);
                }
                _ => {
                    return Err(wrong(400, format!("{key}={value}: give enabled=true|false and rate=0…1")));
                }
            }
        }
        let (answer, done) = oneshot::channel();
        self.orders.send(Order::Collect(collect, answer)).await.map_err(|_| stopping())?;
        done.await.map_err(|_| stopping())?;
        Ok((200, json!({"enabled": collect.enabled, "rate": collect.rate})))
    }

    async fn rollback(&self, arguments: &Map<String, Value>) -> Result<Answer, Answer> {
        let name = text(arguments, "model")?.parse().map_err(|error| wrong(400, format!("{error}")))?;
        let (answer, done) = oneshot::channel();
        self.orders.send(Order::Rollback(name, answer)).await.map_err(|_| stopping())?;
        match done.await.map_err(|_| stopping())? {
            Ok(version) => Ok((200, json!({"version": version}))),
            Err(why) => Err(wrong(409, why)),
        }
    }

    fn log_level(&self, arguments: &Map<String, Value>) -> Result<Answer, Answer> {
        let level = text(arguments, "level")?;
        self.log_level.set(&level).map_err(|error| wrong(400, error.to_string()))?;
        Ok((200, json!({"level": level})))
    }

    /// Waits until every row that is captured by now is in the cloud.
    async fn flush(&self, left: Duration) -> Result<Answer, Answer> {
        let captured = self.service.capture.settle().await;
        self.flush.send_modify(|count| *count += 1);
        let mut ledger = self.ledger.clone();
        let gone = tokio::time::timeout(left, ledger.wait_for(|ledger| has_left(ledger, captured))).await;
        let status = if matches!(gone, Ok(Ok(_))) { 200 } else { 500 };
        let ledger = self.ledger.borrow().clone();
        serde_json::to_value(ledger)
            .map(|ledger| (status, ledger))
            .map_err(|error| wrong(500, error.to_string()))
    }
}

/// Whether the first `captured` rows have left the device, while it may go on capturing: rows leave in order, so
/// they have when as many are no longer held.
fn has_left(ledger: &Ledger, captured: u64) -> bool {
    ledger.captured.saturating_sub(ledger.held) >= captured
}

fn text(arguments: &Map<String, Value>, key: &str) -> Result<String, Answer> {
    match arguments.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        _ => Err(wrong(400, format!("the argument {key:?} is missing or is no text"))),
    }
}

fn refused(error: ScoreRefused) -> Answer {
    let status = match &error {
        ScoreRefused::UnknownModel(..) | ScoreRefused::UnknownVersion { .. } => 404,
        ScoreRefused::Busy(..) | ScoreRefused::Stopping(_) => 409,
        ScoreRefused::Score(engine::ScoreError::BadInput(_)) => 400,
        ScoreRefused::Timeout(_) | ScoreRefused::Score(_) | ScoreRefused::Crashed(_) => 500,
    };
    wrong(status, error.to_string())
}

fn stopping() -> Answer {
    wrong(409, "the agent is stopping".to_owned())
}

fn wrong(status: u16, error: String) -> Answer {
    (status, json!({ "error": bounded_text(error) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_does_not_wait_for_rows_captured_after_it() {
        let ledger = |captured, held| Ledger { captured, held, ..Ledger::default() };
        assert!(!has_left(&ledger(100, 1), 100));
        assert!(has_left(&ledger(100, 0), 100));
        assert!(has_left(&ledger(150, 50), 100));
        assert!(!has_left(&ledger(150, 51), 100));
        // What is known may be older than the flush.
        assert!(!has_left(&ledger(90, 0), 100));
    }
}
