//! From edgeHub's messages to the parts that they are for. Waits for none of them but the twin's keeper, which waits for
//! nothing that comes by this way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use cloud_sync::limits::bounded_text;
use cloud_sync::session::{Event, Incoming, Sender};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::intake::Arrival;
use super::keeper::News;
use super::methods::{self, Call};
use super::topic::{Inbound, Topics};
use crate::log::Seldom;

/// Hands on what edgeHub says.
pub struct Reception {
    /// The module's topics.
    pub topics: Topics,
    /// Answers calls for which there is no room.
    pub sender: Sender,
    /// Hears of the twin.
    pub twin: mpsc::Sender<News>,
    /// Takes messages for inputs.
    pub arrivals: mpsc::Sender<Arrival>,
    /// Takes direct methods.
    pub calls: mpsc::Sender<Call>,
    /// Room for them: [`methods::PLACES`].
    pub places: Arc<Semaphore>,
    /// What found no taker.
    pub counters: Arc<Counters>,
    /// Keeps the log short.
    pub told: Seldom,
}

/// What found no taker.
#[derive(Debug, Default)]
pub struct Counters {
    /// Inputs that found the queue full; they come again.
    pub inputs_put_off: AtomicU64,
    /// Calls that were refused because too many were waiting.
    pub calls_refused: AtomicU64,
    /// Messages on topics that mean nothing here.
    pub foreign: AtomicU64,
}

impl Reception {
    /// Hands on until `stop`.
    pub async fn run(self, mut events: mpsc::Receiver<Event>, stop: CancellationToken) {
        while let Some(Some(event)) = stop.run_until_cancelled(events.recv()).await {
            match event {
                Event::Connected => self.tell(News::Connected).await,
                Event::Disconnected(_) => self.tell(News::Disconnected).await,
                Event::Message(message) => self.take(message).await,
            }
        }
    }

    async fn take(&self, message: Incoming) {
        let Incoming { topic, body, acknowledgement } = message;
        let inbound = self.topics.parse(&topic);
        if let Some(Inbound::Input { name, properties }) = inbound {
            let arrival = Arrival { input: name, properties, body, acknowledgement };
            if let Err(TrySendError::Full(arrival) | TrySendError::Closed(arrival)) =
                self.arrivals.try_send(arrival)
            {
                self.counters.inputs_put_off.fetch_add(1, Ordering::Relaxed);
                if let Some(waiting) = arrival.acknowledgement {
                    waiting.put_off();
                }
            }
            return;
        }
        // All else is answered, or read again after a reconnect.
        if let Some(acknowledgement) = acknowledgement {
            acknowledgement.give();
        }
        match inbound {
            Some(Inbound::Method { name, request_id }) => self.call(name, request_id, body).await,
            Some(Inbound::TwinAnswer { status, request_id }) => {
                self.tell(News::Answer { status, request_id, body }).await;
            }
            Some(Inbound::DesiredPatch { version }) => self.tell(News::Patch { version, body }).await,
            Some(Inbound::Input { .. }) | None => {
                self.counters.foreign.fetch_add(1, Ordering::Relaxed);
                if let Some(more) = self.told.again() {
                    let topic = bounded_text(topic);
                    tracing::warn!(topic, more, "a message on a topic that means nothing here");
                }
            }
        }
    }

    async fn call(&self, name: String, request_id: String, body: Bytes) {
        let arrived = Instant::now();
        let refused = match self.places.clone().try_acquire_owned() {
            Ok(place) => {
                // There is room for each place; it is closed only when the agent stops.
                let call = Call { name, request_id: request_id.clone(), body, arrived, place };
                match self.calls.try_send(call) {
                    Ok(()) => return,
                    Err(_) => methods::stopping(),
                }
            }
            Err(_) => methods::busy(),
        };
        self.counters.calls_refused.fetch_add(1, Ordering::Relaxed);
        methods::answer(&self.sender, &request_id, refused.0, &refused.1, arrived).await;
    }

    async fn tell(&self, news: News) {
        // The keeper ends only when all does.
        let _ = self.twin.send(news).await;
    }
}
