//! Direct methods: the device's commands, called through edgeHub and answered within the caller's time-out.
//!
//! The names, arguments and statuses are those of [`crate::commands`], as JSON. A call is not recorded as a command of
//! the registry is: edgeHub delivers it once or not at all, and its caller waits for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::session::{Outgoing, SendError, Sender};
use cloud_sync::topic::Qos;
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::topic;
use crate::commands::{Answer, Commands};

/// Calls that run at once.
const RUNNING: usize = 8;

/// Calls that run or wait to; those beyond are answered 409 at once.
pub const PLACES: usize = 40;

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

/// How many calls are remembered, so that one that edgeHub sends twice is run once: many times what can run at once.
const REMEMBERED: usize = 512;

/// A call.
#[derive(Debug)]
pub struct Call {
    /// The method.
    pub name: String,
    /// Given back with the answer.
    pub request_id: String,
    /// JSON, or nothing.
    pub body: Bytes,
    /// When it came: its caller waits since then.
    pub arrived: Instant,
    /// Its place among [`PLACES`].
    pub place: OwnedSemaphorePermit,
}

/// Runs calls as they come until `stop`; those that are then under way are answered that they will not be done.
pub async fn serve(
    commands: Commands,
    sender: Sender,
    mut calls: mpsc::Receiver<Call>,
    stop: CancellationToken,
) -> Result<(), String> {
    let turns = Arc::new(Semaphore::new(RUNNING));
    let (mut running, mut known) = (JoinSet::new(), VecDeque::with_capacity(REMEMBERED));
    while let Some(Some(call)) = stop.run_until_cancelled(calls.recv()).await {
        if known.contains(&call.request_id) {
            continue;
        }
        known.truncate(REMEMBERED - 1);
        known.push_front(call.request_id.clone());
        let (commands, sender, turns, stop) = (commands.clone(), sender.clone(), turns.clone(), stop.clone());
        running.spawn(async move {
            let (patience, arguments) = patience(&call);
            let run = run(&commands, &turns, &call, arguments, patience);
            let (status, result) = stop.run_until_cancelled(run).await.unwrap_or_else(stopping);
            let answer = answer(&sender, &call.request_id, status, &result, call.arrived + patience);
            tokio::select! {
                () = answer => {}
                () = cut_short(&stop) => tracing::warn!("a method was not answered before the end"),
            }
            drop(call.place);
        });
        // Those that have ended.
        while running.try_join_next().is_some() {}
    }
    while running.join_next().await.is_some() {}
    Ok(())
}

/// The answer to a call that there is no room or no time for.
pub fn busy() -> Answer {
    (409, json!({ "error": "too many methods are being run; try again" }))
}

/// The answer to a call that comes too late.
pub fn stopping() -> Answer {
    (409, json!({ "error": "the agent is stopping" }))
}

/// Answers a call, waiting for the link until its caller waits no longer.
pub async fn answer(sender: &Sender, request_id: &str, status: u16, result: &Value, until: Instant) {
    let (mut status, mut body) = (status, result.to_string());
    if body.len() > MAX_ANSWER_BYTES {
        let error = format!("the answer has {} bytes, {MAX_ANSWER_BYTES} can be given", body.len());
        (status, body) = (500, json!({ "error": error }).to_string());
    }
    let topic = topic::method_answer(status, request_id);
    let message = Outgoing { topic, body: body.into(), qos: Qos::AtLeastOnce, retain: false };
    let sent = async {
        loop {
            match sender.publish(message.clone()).await {
                Ok(_) => return,
                Err(SendError::Offline | SendError::Busy) => sender.online().await,
                Err(error @ SendError::Refused(_)) => {
                    tracing::error!(%error, "a method can't be answered");
                    return;
                }
            }
        }
    };
    if tokio::time::timeout_at(until.max(Instant::now() + AT_ONCE), sent).await.is_err() {
        tracing::warn!(status, "a method was not answered in time");
    }
}

/// Waits until an answer that is under way at the end must be left.
async fn cut_short(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(AT_ONCE).await;
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
    turns: &Semaphore,
    call: &Call,
    arguments: Result<Map<String, Value>, String>,
    patience: Duration,
) -> Answer {
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(error) => return (400, json!({ "error": error })),
    };
    let to_answer = TO_ANSWER.min(patience / 2);
    let deadline = call.arrived + patience.saturating_sub(to_answer);
    let Ok(Ok(_turn)) = tokio::time::timeout_at(deadline, turns.acquire()).await else { return busy() };
    let left = deadline.saturating_duration_since(Instant::now());
    // A command that keeps to what is left has the first word.
    let done = commands.perform(&call.name, &arguments, left);
    let late = (500, json!({ "error": format!("not done within {patience:?}; it may still be done") }));
    tokio::time::timeout(left + to_answer / 2, done).await.unwrap_or(late)
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
