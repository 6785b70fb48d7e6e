//! Commands: sent to a device until it answers or the deadline is over.
//!
//! The device runs an id once and answers it again when asked again, so sending twice is safe, and the broker need
//! not be trusted to keep a command for a device that is away.

use std::time::Duration;

use cloud_sync::contract::{Command, Reply};
use cloud_sync::name::DeviceId;
use serde_json::{Map, Value};
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::error::RegistryError;
use crate::link::{Link, LinkError};
use crate::store::{Store, StoreError};

/// Between two sendings of a command.
const SEND_AGAIN: Duration = Duration::from_secs(2);

/// Between two looks into the database for an answer that another replica received: what a person does not notice.
const LOOK: Duration = Duration::from_millis(200);

/// How long a command may be waited for: whoever waits longer should ask again.
pub const LONGEST_TIMEOUT: Duration = Duration::from_secs(600);

/// The ids of answered commands that a slow waiter may be behind; it finds later ones in the database.
const ANSWERED: usize = 256;

/// The commands that are under way.
#[derive(Debug)]
pub struct Commands {
    store: Store,
    link: Link,
    answered: broadcast::Sender<String>,
}

impl Commands {
    /// Keeps commands in `store` and sends them through `link`.
    pub fn new(store: Store, link: Link) -> Self {
        Self { store, link, answered: broadcast::channel(ANSWERED).0 }
    }

    /// Has a device do something, and returns its answer.
    pub async fn run(
        &self,
        device: &DeviceId,
        name: String,
        arguments: Map<String, Value>,
        timeout: Duration,
    ) -> Result<Reply, RegistryError> {
        let timeout = timeout.min(LONGEST_TIMEOUT);
        let now = crate::now_ms();
        let waited = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let id = uuid::Uuid::new_v4().simple().to_string();
        let command = Command { id: id.clone(), name, arguments, deadline: now.saturating_add(waited) };
        cloud_sync::contract::encode(&command).map_err(|error| RegistryError::Invalid(error.to_string()))?;
        self.store.add_command(device, &command, now).await?;
        let mut answered = self.answered.subscribe();
        let deadline = Instant::now() + timeout;
        loop {
            match self.link.publish(device, &command).await {
                Ok(()) | Err(LinkError::Send(_)) => {}
                Err(LinkError::Contract(error)) => return Err(RegistryError::Invalid(error.to_string())),
            }
            let again = deadline.min(Instant::now() + SEND_AGAIN);
            while Instant::now() < again {
                let look = again.min(Instant::now() + LOOK);
                // Left when this command is answered, at the next look, and when the waiter has fallen behind.
                while let Ok(Ok(other)) = tokio::time::timeout_at(look, answered.recv()).await {
                    if other == id {
                        break;
                    }
                }
                if let Some(reply) = self.store.command_answer(&id).await? {
                    return Ok(reply);
                }
            }
            if Instant::now() >= deadline {
                return Err(RegistryError::Timeout(format!(
                    "{device} did not answer within {timeout:?}; see `edgewise device show {device}`"
                )));
            }
        }
    }

    /// Takes an answer. An unknown id or a second answer changes nothing.
    pub async fn answer(&self, device: &DeviceId, reply: &Reply) -> Result<(), StoreError> {
        if self.store.answer_command(device, reply).await? {
            // Nobody may be waiting any more.
            let _ = self.answered.send(reply.id.clone());
        }
        Ok(())
    }
}
