//! What goes out to edgeHub and must arrive: kept until it is acknowledged, across reconnects and lost sessions.
//!
//! Invariants:
//! - Messages leave in the order in which they were put in, also when they are sent again: after a lost connection
//!   everything without an acknowledgement goes once more, so a message may arrive twice and never not at all.
//! - What is to follow a message, such as the acknowledgement of the input that it answers, follows only once edgeHub
//!   has it.
//! - Memory holds at most [`QUEUE`] + [`WINDOW`] messages; whoever has more waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::session::{Acknowledgement, Delivery, Outgoing, SendError, Sender};
use cloud_sync::topic::Qos;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Messages that wait to be sent.
const QUEUE: usize = 8;

/// Messages that are sent and not acknowledged: enough to hide edgeHub's disk, and 4 MiB at most.
const WINDOW: usize = 16;

/// How long the last messages may take at the end. What has not arrived by then is not lost: the input that it answers
/// is not acknowledged, and the rows that it carries are in the spool.
const FAREWELL: Duration = Duration::from_secs(2);

/// Pause before what found no room is sent again.
const BUSY: Duration = Duration::from_millis(20);

/// Largest message with its topic that edgeHub takes, less the packet's own header.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024 - 64;

/// A message, and what follows it.
#[derive(Debug)]
pub struct Item {
    /// Where to.
    pub topic: String,
    /// What.
    pub body: Bytes,
    /// What is to be done once edgeHub has it.
    pub then: Then,
}

/// What is to be done once edgeHub has a message.
#[derive(Debug)]
pub enum Then {
    /// Nothing.
    Nothing,
    /// The message answers an input, which is done with.
    Acknowledge(Acknowledgement),
    /// Somebody waits for that.
    Tell(oneshot::Sender<()>),
}

/// The end into which messages are put. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbox {
    items: mpsc::Sender<Item>,
    counters: Arc<Counters>,
}

/// What the outbox has been through.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages that edgeHub has.
    pub delivered: AtomicU64,
    /// Messages that were sent again.
    pub resent: AtomicU64,
    /// Messages that MQTT can't carry.
    pub refused: AtomicU64,
}

/// The end that sends; see [`Carrier::run`].
#[derive(Debug)]
pub struct Carrier {
    items: mpsc::Receiver<Item>,
    window: VecDeque<Entry>,
    sender: Sender,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Entry {
    item: Item,
    delivery: Option<Delivery>,
}

/// An outbox over a session.
pub fn open(sender: Sender) -> (Outbox, Carrier) {
    let (items, waiting) = mpsc::channel(QUEUE);
    let counters = Arc::new(Counters::default());
    let carrier = Carrier { items: waiting, window: VecDeque::new(), sender, counters: counters.clone() };
    (Outbox { items, counters }, carrier)
}

impl Outbox {
    /// Puts a message in, waiting for a place. False once the agent is stopping: it will not be sent.
    pub async fn put(&self, item: Item) -> bool {
        self.items.send(item).await.is_ok()
    }

    /// What it has been through.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Carrier {
    /// Sends until `stop`, and then what is left, as far as edgeHub takes it soon.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut deadline = None;
        loop {
            self.send().await;
            if deadline.is_some() && self.window.is_empty() && self.items.is_empty() {
                return;
            }
            let has_place = self.window.len() < WINDOW;
            let is_unsent = self.window.iter().any(|entry| entry.delivery.is_none());
            let end = deadline.unwrap_or_else(Instant::now);
            tokio::select! {
                // What was lost is known before anything new is sent behind it.
                biased;
                acknowledged = oldest(&mut self.window) => {
                    if acknowledged { self.delivered() } else { self.lost() }
                }
                Some(item) = self.items.recv(), if has_place => {
                    self.window.push_back(Entry { item, delivery: None });
                }
                () = connected(&self.sender), if is_unsent => {}
                () = stop.cancelled(), if deadline.is_none() => deadline = Some(Instant::now() + FAREWELL),
                () = tokio::time::sleep_until(end), if deadline.is_some() => return,
            }
        }
    }

    /// Sends what is not under way, as far as there is a connection.
    async fn send(&mut self) {
        let mut refused = None;
        for (at, entry) in self.window.iter_mut().enumerate().filter(|(_, entry)| entry.delivery.is_none()) {
            let (topic, body) = (entry.item.topic.clone(), entry.item.body.clone());
            let message = Outgoing { topic, body, qos: Qos::AtLeastOnce, retain: false };
            match self.sender.publish(message).await {
                Ok(delivery) => entry.delivery = Some(delivery),
                Err(SendError::Offline | SendError::Busy) => break,
                Err(error @ SendError::Refused(_)) => {
                    tracing::error!(topic = entry.item.topic, %error, "a message can't be sent");
                    refused = Some(at);
                    break;
                }
            }
        }
        let Some(at) = refused else { return };
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
        let Some(Item { then: Then::Acknowledge(input), .. }) =
            self.window.remove(at).map(|entry| entry.item)
        else {
            return;
        };
        // The input would come again for ever; it is done with once its other answers have arrived.
        match at.checked_sub(1).and_then(|before| self.window.get_mut(before)) {
            Some(Entry { item: Item { then: then @ Then::Nothing, .. }, .. }) => {
                *then = Then::Acknowledge(input)
            }
            _ => input.give(),
        }
    }

    fn delivered(&mut self) {
        self.counters.delivered.fetch_add(1, Ordering::Relaxed);
        match self.window.pop_front().map(|entry| entry.item.then) {
            Some(Then::Acknowledge(input)) => input.give(),
            Some(Then::Tell(waiting)) => drop(waiting.send(())),
            Some(Then::Nothing) | None => {}
        }
    }

    fn lost(&mut self) {
        let under_way = self.window.iter_mut().filter_map(|entry| entry.delivery.take()).count();
        self.counters.resent.fetch_add(under_way as u64, Ordering::Relaxed);
    }
}

/// What becomes of the oldest message. Never ends where it is not under way.
async fn oldest(window: &mut VecDeque<Entry>) -> bool {
    match window.front_mut().and_then(|entry| entry.delivery.as_mut()) {
        Some(delivery) => delivery.acknowledged().await,
        None => std::future::pending().await,
    }
}

/// Waits for a connection on which what is unsent can be sent.
async fn connected(sender: &Sender) {
    // A full queue to the network moves by itself.
    tokio::time::sleep(BUSY).await;
    sender.online().await;
}
