//! The task that runs commands as they come: some at a time, each id once.

use std::sync::{Arc, Mutex, PoisonError};

use cloud_sync::contract::{Command, Reply};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::Commands;
use super::once::{Known, Once};
use crate::capture::wall_ms;
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
        if command.deadline < wall_ms() {
            tracing::warn!(id = %command.id, name = %command.name, "a command came after its deadline");
            continue;
        }
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
    let begin = move || record.lock().unwrap_or_else(PoisonError::into_inner).begin(&id);
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
    let reply = commands.run(&command).await;
    let (record, kept) = (once.clone(), reply.clone());
    let end = move || record.lock().unwrap_or_else(PoisonError::into_inner).end(&kept);
    if let Ok(Err(error)) = tokio::task::spawn_blocking(end).await {
        tracing::warn!(id = %reply.id, %error, "an answer can't be recorded");
    }
    Some(reply)
}
