//! The task that runs commands as they come: some at a time, each id once.

use std::sync::{Arc, Mutex, PoisonError};

use cloud_sync::contract::{Command, Reply};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::Commands;
use super::once::{Known, Once};
use crate::clock::{EARLIEST_MS, wall_ms};
use crate::link::Link;

/// Commands that run at once, and that wait to: a command holds little, but may wait minutes for the link.
const RUNNING: usize = 8;
/// See [`RUNNING`].
pub const WAITING: usize = 32;

/// Runs what is waiting until `stop`.
pub async fn serve(
    commands: Commands,
    once: Once,
    link: Link,
    mut waiting: mpsc::Receiver<Command>,
    stop: CancellationToken,
) -> Result<(), String> {
    let once = Arc::new(Mutex::new(once));
    let permits = Arc::new(Semaphore::new(RUNNING));
    loop {
        let command = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(command) = waiting.recv() => command,
        };
        let permit = permits.clone().acquire_owned().await.map_err(|error| error.to_string())?;
        let (commands, once, link, stop) = (commands.clone(), once.clone(), link.clone(), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let reply = tokio::select! {
                () = stop.cancelled() => return,
                reply = answer(&commands, &once, command) => reply,
            };
            if let Some(reply) = reply
                && let Err(error) = link.reply(&reply).await
            {
                tracing::warn!(id = %reply.id, %error, "a reply was not sent; the cloud will ask again");
            }
        });
    }
}

async fn answer(commands: &Commands, once: &Arc<Mutex<Once>>, command: Command) -> Option<Reply> {
    let (record, id) = (once.clone(), command.id.clone());
    let late = too_late(command.deadline, wall_ms());
    let is_late = late.is_some();
    let begin = move || {
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        // What was run in time is answered again whenever it is asked for.
        if is_late { Ok(record.know(&id)) } else { record.begin(&id) }
    };
    match tokio::task::spawn_blocking(begin).await {
        Ok(Ok(Known::New)) => {}
        Ok(Ok(Known::Running)) => return None,
        Ok(Ok(Known::Answered(reply))) => return Some(reply),
        Ok(Err(error)) => {
            // Not run: without the record it could run twice.
            tracing::warn!(id = %command.id, %error, "a command can't be recorded");
            let result =
                serde_json::json!({"error": format!("the device can't record the command: {error}")});
            return Some(Reply { id: command.id, status: 500, result });
        }
        Err(_) => return None,
    }
    if let Some(error) = late {
        tracing::warn!(id = %command.id, name = %command.name, %error, "a command is not run");
        return Some(Reply { id: command.id, status: 409, result: serde_json::json!({ "error": error }) });
    }
    let reply = commands.run(&command).await;
    let (record, kept) = (once.clone(), reply.clone());
    let end = move || record.lock().unwrap_or_else(PoisonError::into_inner).end(&kept);
    if let Ok(Err(error)) = tokio::task::spawn_blocking(end).await {
        tracing::warn!(id = %reply.id, %error, "an answer can't be recorded");
    }
    Some(reply)
}

/// Why a command is not run any more. A device whose clock is ahead would refuse every command, so it says what both
/// clocks show; one whose clock is surely wrong can't judge, and runs it.
fn too_late(deadline_ms: u64, now_ms: u64) -> Option<String> {
    if now_ms < EARLIEST_MS || now_ms <= deadline_ms {
        return None;
    }
    let clock = |ms: u64| {
        let time = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        time.map_or_else(|| format!("{ms} ms after 1970"), |time| time.to_string())
    };
    Some(format!(
        "the command was to be run by {} of the cloud's clock, and this device's clock says {}; if it is ahead, set it",
        clock(deadline_ms),
        clock(now_ms)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_ahead_is_told_and_one_that_is_unset_does_not_judge() {
        assert_eq!(too_late(EARLIEST_MS + 1000, EARLIEST_MS + 1000), None);
        assert_eq!(too_late(1000, EARLIEST_MS - 1), None);
        let why = too_late(EARLIEST_MS, EARLIEST_MS + 3_600_000).unwrap();
        assert!(why.contains("2025-01-01T00:00:00Z") && why.contains("2025-01-01T01:00:00Z"), "{why}");
    }
}
