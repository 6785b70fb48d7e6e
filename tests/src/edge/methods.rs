//! Direct methods that were called: who still waits for which answer.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::process::Failure;

/// The status that stands for one that is no integer.
const NO_STATUS: i64 = 400_000;

/// Most bytes of an answer.
pub(super) const MAX_BYTES: usize = 128 * 1024;

/// All calls so far, by request id.
#[derive(Default)]
pub(super) struct Methods {
    calls: BTreeMap<String, Call>,
    /// Answers that came when nobody waited any more: request id and status.
    pub(super) late: Vec<(String, i64)>,
}

enum Call {
    Waiting,
    /// Answered on this connection, with status and body.
    Answered(u64, i64, Value),
    TimedOut,
}

impl Methods {
    /// A new call.
    pub(super) fn begin(&mut self, rid: &str) {
        self.calls.insert(rid.to_owned(), Call::Waiting);
    }

    /// The answer, if it is there.
    pub(super) fn answer(&self, rid: &str) -> Option<(i64, Value)> {
        match self.calls.get(rid) {
            Some(Call::Answered(_, status, body)) => Some((*status, body.clone())),
            _ => None,
        }
    }

    /// Nobody waits any more.
    pub(super) fn give_up(&mut self, rid: &str) {
        self.calls.insert(rid.to_owned(), Call::TimedOut);
    }

    /// An answer came on a connection; the error is the rule that it breaks.
    pub(super) fn answered(
        &mut self,
        connection: u64,
        rid: &str,
        status: &str,
        body: &[u8],
        duplicate: bool,
    ) -> Result<(), Failure> {
        let number = status.parse().unwrap_or(NO_STATUS);
        let value = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(body) };
        match self.calls.get_mut(rid) {
            None => return Err(format!("an answer to the method call {rid:?}, which there was not")),
            Some(call @ Call::Waiting) => {
                let value = value.as_ref().unwrap_or(&Value::Null).clone();
                *call = Call::Answered(connection, number, value);
            }
            Some(Call::TimedOut) => self.late.push((rid.to_owned(), number)),
            // What was not acknowledged before a connection was lost has to come again.
            Some(Call::Answered(before, ..)) if duplicate || *before != connection => {}
            Some(Call::Answered(..)) => return Err(format!("a second answer to the method call {rid}")),
        }
        if number == NO_STATUS {
            Err(format!("a method's status {status:?} is no integer"))
        } else if body.len() > MAX_BYTES {
            Err(format!("a method's answer of {} bytes, {MAX_BYTES} are allowed", body.len()))
        } else {
            value.map(drop).map_err(|error| format!("a method's answer that is no JSON: {error}"))
        }
    }
}
