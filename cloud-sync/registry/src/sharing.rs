//! Whether the broker shares work between registries: MQTT 3.1.1 has no shared subscriptions, most brokers have them all
//! the same, and those that don't take `$share/…` for a topic on which nothing ever comes, without a word.
//!
//! So each connection sends itself two probes, one that comes over a shared subscription and one behind it that comes
//! over a plain one. Where only the second comes, the registry listens to everything itself.

use std::time::Duration;

use bytes::Bytes;
use cloud_sync::session::{Outgoing, SendError, Sender};
use cloud_sync::topic::{Qos, Root};
use tokio::time::Instant;

/// How much later than the plain probe the shared one may come, though it was sent first. Brokers hand both out at once;
/// to take silence for an answer too soon costs that every message comes twice until the next connection.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of the broker on this connection.
#[derive(Debug)]
pub struct Sharing {
    sender: Sender,
    root: Root,
    shared: String,
    plain: String,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// No probe has come; or there is no connection.
    Unknown,
    /// The probes found no room, and this is when they are sent again.
    Unsent(Instant),
    /// The plain probe has come, and this is until when the shared one may.
    Doubted(Instant),
    /// It is known.
    Known,
}

/// What a registry listens to for its probes.
pub fn probes(root: &Root, client_id: &str) -> [(String, Qos); 2] {
    let (shared, plain) = topics(root, client_id);
    [(format!("$share/{client_id}/{shared}"), Qos::AtLeastOnce), (plain, Qos::AtLeastOnce)]
}

impl Sharing {
    /// For the session with that client id, which listens to its [`probes`].
    pub fn new(sender: Sender, root: Root, client_id: &str) -> Self {
        let (shared, plain) = topics(&root, client_id);
        Self { sender, root, shared, plain, state: State::Unknown }
    }

    /// There is a new connection: sends the probes.
    pub fn begin(&mut self) {
        self.state = State::Unknown;
        let probe = |topic: &String| {
            let (topic, body) = (topic.clone(), Bytes::from_static(b"probe"));
            self.sender.try_publish(Outgoing { topic, body, qos: Qos::AtLeastOnce, retain: false }).map(drop)
        };
        match probe(&self.shared).and_then(|()| probe(&self.plain)) {
            // The next connection begins anew.
            Ok(()) | Err(SendError::Offline) => {}
            Err(error) => {
                tracing::debug!(%error, "whether the broker has shared subscriptions is tried a little later");
                self.state = State::Unsent(Instant::now() + PATIENCE);
            }
        }
    }

    /// Takes a message that is a probe.
    pub fn took(&mut self, topic: &str) -> bool {
        match self.state {
            _ if topic == self.shared => self.state = State::Known,
            State::Unknown if topic == self.plain => self.state = State::Doubted(Instant::now() + PATIENCE),
            _ => return topic == self.plain,
        }
        true
    }

    /// Ends when it is time for [`Sharing::give_up`]; never where there is nothing to wait for.
    pub async fn doubt(&self) {
        match self.state {
            State::Doubted(until) | State::Unsent(until) => tokio::time::sleep_until(until).await,
            State::Unknown | State::Known => std::future::pending().await,
        }
    }

    /// The shared probe has not come in time: listens to everything. Where none was sent, sends them now.
    pub fn give_up(&mut self) {
        if let State::Unsent(_) = self.state {
            return self.begin();
        }
        self.state = State::Known;
        match self.sender.subscribe(&self.root.unshared()) {
            Ok(()) => tracing::warn!(
                "this broker has no shared subscriptions: this registry takes every message itself, and each further \
                 one would do all work once more"
            ),
            // The next connection begins anew.
            Err(SendError::Offline) => {}
            Err(_) => self.state = State::Doubted(Instant::now() + PATIENCE),
        }
    }
}

/// Below the root, where the registry may speak; the last part is none of the contract, so that no other takes it.
fn topics(root: &Root, client_id: &str) -> (String, String) {
    let topic = |name: &str| format!("{root}/{client_id}/probe-{name}");
    (topic("shared"), topic("plain"))
}
