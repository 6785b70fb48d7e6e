//! Direct methods: the device's commands, called through edgeHub and answered within the caller's time-out.
//!
//! The names, arguments and statuses are those of [`crate::commands`], as JSON. A call is not recorded as a command of
//! the registry is: edgeHub delivers it once or not at all, and its caller waits for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::limits::bounded_text;
use cloud_sync::session::{Outgoing, SendError, Sender};
use cloud_sync::topic::Qos;
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::topic;
use crate::commands::Commands;

/// Calls that run at once.
const RUNNING: usize = 8;

/// Calls that wait to; those beyond are answered 409 at once.
pub const WAITING: usize = 32;

/// How long a call may take where it does not say: less than the 30 s after which a caller gives up by default.
const PATIENCE: Duration = Duration::from_secs(25);

/// What of that is kept for the answer's own way.
const TO_ANSWER: Duration = Duration::from_secs(1);

/// How long an answer may take for which its caller may wait no longer.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Longest time that a caller can wait, as IoT Hub has it.
const LONGEST: Duration = Duration::from_secs(300);

/// Largest answer that IoT Hub passes on.
const MAX_ANSWER_BYTES: usize = 128 * 1024;

/// The argument in which a caller who waits longer than by default says so, in seconds.
const TIMEOUT: &str = "timeoutSeconds";

/// How many calls are remembered, so that one that edgeHub sends twice is run once.
const REMEMBERED: usize = 32;

/// A call.
#[derive(Debug)]
pub struct Call {
    /// The method.
    pub name: String,
    /// Given back with the answer.
    pub request_id: String,
    /// JSON, or nothing.
    pub body: Bytes,
    /// When it came: its caller has waited since then.
    pub came: Instant,
}

/// Runs calls as they come until `stop`; those that are then under way are answered that they will not be done.
pub async fn serve(
    commands: Commands,
    sender: Sender,
    mut calls: mpsc::Receiver<Call>,
    stop: CancellationToken,
) -> Result<(), String> {
    let permits = Arc::new(Semaphore::new(RUNNING));
    let (mut running, mut known) = (JoinSet::new(), VecDeque::with_capacity(REMEMBERED));
    while let Some(Some(call)) = stop.run_until_cancelled(calls.recv()).await {
        if known.contains(&call.request_id) {
            continue;
        }
        known.truncate(REMEMBERED - 1);
        known.push_front(call.request_id.clone());
        let (commands, sender, stop) = (commands.clone(), sender.clone(), stop.clone());
        let permits = permits.clone();
        running.spawn(async move {
            let (patience, arguments) = patience(&call);
            let done = async {
                let _permit = permits.acquire_owned().await;
                run(&commands, &call, arguments, patience).await
            };
            let stopping = (409, json!({ "error": "the agent is stopping" }));
            let (status, result) = stop.run_until_cancelled(done).await.unwrap_or(stopping);
            answer(&sender, &call, status, &result, patience).await;
        });
        // Those that have ended.
        while running.try_join_next().is_some() {}
        // As many as may run, and as many as may wait to.
        while running.len() >= RUNNING + WAITING && running.join_next().await.is_some() {}
    }
    while running.join_next().await.is_some() {}
    Ok(())
}

/// Answers a call, waiting for the link as long as its caller does.
pub async fn answer(sender: &Sender, call: &Call, status: u16, result: &Value, patience: Duration) {
    let (mut status, mut body) = (status, result.to_string());
    if body.len() > MAX_ANSWER_BYTES {
        let error = format!("the answer has {} bytes, {MAX_ANSWER_BYTES} can be given", body.len());
        (status, body) = (500, json!({ "error": error }).to_string());
    }
    let topic = topic::method_answer(status, &call.request_id);
    let message = Outgoing { topic, body: body.into(), qos: Qos::AtLeastOnce, retain: false };
    let sent = async {
        while let Err(error) = sender.publish(message.clone()).await {
            if !matches!(error, SendError::Offline) {
                return Err(error);
            }
            sender.online().await;
        }
        Ok(())
    };
    // It may leave at once where nobody is known to wait.
    let until = (call.came + patience).max(Instant::now() + AT_ONCE);
    if !matches!(tokio::time::timeout_at(until, sent).await, Ok(Ok(()))) {
        tracing::warn!(method = bounded_text(&call.name), "a method was not answered in time");
    }
}

/// How long a caller waits, and what it says beside that.
fn patience(call: &Call) -> (Duration, Result<Map<String, Value>, String>) {
    let mut arguments = match arguments(&call.body) {
        Ok(arguments) => arguments,
        Err(error) => return (PATIENCE, Err(error)),
    };
    let Some(seconds) = arguments.remove(TIMEOUT) else { return (PATIENCE, Ok(arguments)) };
    let given = seconds.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match given.filter(|given| *given <= LONGEST) {
        Some(given) => (given, Ok(arguments)),
        None => (PATIENCE, Err(format!("{TIMEOUT} must be 0 to {} seconds", LONGEST.as_secs()))),
    }
}

async fn run(
    commands: &Commands,
    call: &Call,
    arguments: Result<Map<String, Value>, String>,
    patience: Duration,
) -> (u16, Value) {
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(error) => return (400, json!({ "error": error })),
    };
    // What of it is left: it may have waited for others.
    let left = patience.saturating_sub(call.came.elapsed());
    if left.is_zero() {
        return (500, json!({ "error": "not begun in time: too many methods are being run" }));
    }
    let late = (500, json!({ "error": format!("not done within {patience:?}; it may still be done") }));
    let for_itself = left.saturating_sub(TO_ANSWER).max(left / 2);
    tokio::time::timeout(left, commands.perform(&call.name, &arguments, for_itself)).await.unwrap_or(late)
}

fn arguments(body: &[u8]) -> Result<Map<String, Value>, String> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(arguments)) => Ok(arguments),
        // What Microsoft's tools send where the caller gives nothing.
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err("the payload must be a JSON object".to_owned()),
        Err(error) => Err(format!("the payload is no JSON: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_an_object_or_nothing() {
        assert!(arguments(b"").unwrap().is_empty() && arguments(b"null").unwrap().is_empty());
        assert_eq!(arguments(br#"{"model": "m"}"#).unwrap().get("model"), Some(&json!("m")));
        assert!(arguments(b"[]").is_err() && arguments(b"{").is_err());
    }
}
