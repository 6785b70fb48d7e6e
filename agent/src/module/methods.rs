//! Direct methods: the device's commands, called through edgeHub and answered within the caller's time-out.
//!
//! The names, arguments and statuses are those of [`crate::commands`], as JSON. A call is not recorded as a command of
//! the registry is: edgeHub delivers it once or not at all, and its caller waits for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::session::{Outgoing, Sender};
use cloud_sync::topic::Qos;
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, mpsc};
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

/// Longest time that a caller can wait, as IoT Hub has it.
const LONGEST: Duration = Duration::from_secs(300);

/// Largest answer that IoT Hub passes on.
const MAX_ANSWER_BYTES: usize = 128 * 1024;

/// The argument in which a caller who waits longer than by default says so, in seconds.
const TIMEOUT: &str = "timeoutSeconds";

/// A call.
#[derive(Debug)]
pub struct Call {
    /// The method.
    pub name: String,
    /// Given back with the answer.
    pub request_id: String,
    /// JSON, or nothing.
    pub body: Bytes,
}

/// Runs calls as they come until `stop`.
pub async fn serve(
    commands: Commands,
    sender: Sender,
    mut calls: mpsc::Receiver<Call>,
    stop: CancellationToken,
) -> Result<(), String> {
    let permits = Arc::new(Semaphore::new(RUNNING));
    loop {
        let call = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(call) = calls.recv() => call,
        };
        let permit = permits.clone().acquire_owned().await.map_err(|error| error.to_string())?;
        let (commands, sender, stop) = (commands.clone(), sender.clone(), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let run = run(&commands, &call);
            if let Some((status, result)) = stop.run_until_cancelled(run).await {
                answer(&sender, &call.request_id, status, &result).await;
            }
        });
    }
}

/// Answers a call. Where the link is down nobody waits for it any more.
pub async fn answer(sender: &Sender, request_id: &str, status: u16, result: &Value) {
    let (mut status, mut body) = (status, result.to_string());
    if body.len() > MAX_ANSWER_BYTES {
        let error = format!("the answer has {} bytes, {MAX_ANSWER_BYTES} can be given", body.len());
        (status, body) = (500, json!({ "error": error }).to_string());
    }
    let topic = topic::method_answer(status, request_id);
    let message = Outgoing { topic, body: body.into(), qos: Qos::AtLeastOnce, retain: false };
    if let Err(error) = sender.publish(message).await {
        tracing::warn!(%error, "a method was not answered");
    }
}

async fn run(commands: &Commands, call: &Call) -> (u16, Value) {
    let mut arguments = match arguments(&call.body) {
        Ok(arguments) => arguments,
        Err(error) => return (400, json!({ "error": error })),
    };
    let patience = match arguments.remove(TIMEOUT).map(|seconds| seconds.as_f64()) {
        None => PATIENCE,
        Some(seconds) => {
            let given = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            let Some(given) = given.filter(|given| *given <= LONGEST) else {
                let error = format!("{TIMEOUT} must be 0 to {} seconds", LONGEST.as_secs());
                return (400, json!({ "error": error }));
            };
            given
        }
    };
    let left = patience.saturating_sub(TO_ANSWER).max(patience / 2);
    let late = (500, json!({ "error": format!("not done within {patience:?}; it may still be done") }));
    tokio::time::timeout(patience, commands.perform(&call.name, &arguments, left)).await.unwrap_or(late)
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
