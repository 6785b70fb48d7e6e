//! What is on its way out: from the caller through the client's queue to the broker's acknowledgement.
//!
//! Invariants:
//! - Each message in the client's queue has an entry here, in the same order: both are filled under one lock, and the
//!   client takes from its queue in order. So the client's "published with packet id N" speaks of the oldest entry.
//! - What is lost with a connection is told to whoever waits for it, and never confirmed later.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rumqttc::{AsyncClient, SubscribeFilter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};

use super::{Outgoing, SendError, native};
use crate::topic::Qos;

/// Pause before a queue that is full of what is not a message is tried again.
const BUSY: Duration = Duration::from_millis(5);

/// The broker's acknowledgement of one message.
///
/// Resolves to true once the broker has acknowledged it, and to false once it can't any more: the connection is
/// lost. A message of [`crate::topic::Qos::AtMostOnce`] is never acknowledged.
#[derive(Debug)]
pub struct Delivery(oneshot::Receiver<()>);

impl Delivery {
    /// Waits for the acknowledgement. Once it has answered it is not to be asked again.
    pub async fn acknowledged(&mut self) -> bool {
        (&mut self.0).await.is_ok()
    }
}

/// The way out of one session.
#[derive(Debug)]
pub(super) struct Departures {
    client: AsyncClient,
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    online: bool,
    queued: VecDeque<Queued>,
    /// A message that the client has taken from its queue and holds back until its packet id is free.
    held_back: Option<oneshot::Sender<()>>,
    in_flight: HashMap<u16, oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Queued {
    acknowledged: oneshot::Sender<()>,
    _place: OwnedSemaphorePermit,
}

impl Departures {
    pub(super) fn new(client: AsyncClient, places: usize) -> Self {
        Self { client, places: Arc::new(Semaphore::new(places)), state: Mutex::default() }
    }

    /// Queues a message, waiting for a place in the queue.
    pub(super) async fn send(&self, message: Outgoing) -> Result<Delivery, SendError> {
        loop {
            let place = self.places.clone().acquire_owned().await.map_err(|_| SendError::Offline)?;
            match self.put(message.clone(), place) {
                // Full of acknowledgements, for a moment.
                Err(SendError::Busy) => tokio::time::sleep(BUSY).await,
                put => return put,
            }
        }
    }

    /// Queues a message if there is a place.
    pub(super) fn try_send(&self, message: Outgoing) -> Result<Delivery, SendError> {
        if !self.lock().online {
            return Err(SendError::Offline);
        }
        match self.places.clone().try_acquire_owned() {
            Ok(place) => self.put(message, place),
            Err(TryAcquireError::NoPermits) => Err(SendError::Busy),
            Err(TryAcquireError::Closed) => Err(SendError::Offline),
        }
    }

    /// There is a connection.
    pub(super) fn open(&self) {
        self.lock().online = true;
    }

    /// There is none any more: what was on its way is lost.
    pub(super) fn close(&self) {
        *self.lock() = State::default();
    }

    /// The client has sent the oldest message; 0 for one that is not acknowledged.
    pub(super) fn published(&self, packet: u16) {
        let mut state = self.lock();
        let sent = state.held_back.take().or_else(|| Some(state.queued.pop_front()?.acknowledged));
        if let Some(sent) = sent
            && packet != 0
        {
            state.in_flight.insert(packet, sent);
        }
    }

    /// The client has taken the oldest message, and sends it before any other once its packet id is free.
    pub(super) fn held_back(&self) {
        let mut state = self.lock();
        state.held_back = state.queued.pop_front().map(|queued| queued.acknowledged);
    }

    /// The broker has acknowledged a message.
    pub(super) fn acknowledged(&self, packet: u16) {
        if let Some(waiting) = self.lock().in_flight.remove(&packet) {
            let _ = waiting.send(());
        }
    }

    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.queued.is_empty() && state.held_back.is_none() && state.in_flight.is_empty()
    }

    /// Asks the broker for more messages.
    pub(super) fn subscribe(&self, filters: &[(String, Qos)]) -> Result<(), SendError> {
        let filter = |(filter, qos): &(String, Qos)| SubscribeFilter::new(filter.clone(), native(*qos));
        self.client.try_subscribe_many(filters.iter().map(filter)).map_err(|_| SendError::Busy)
    }

    fn put(&self, message: Outgoing, place: OwnedSemaphorePermit) -> Result<Delivery, SendError> {
        let mut state = self.lock();
        if !state.online {
            return Err(SendError::Offline);
        }
        let Outgoing { topic, body, qos, retain } = message;
        self.client.try_publish(topic, native(qos), retain, body).map_err(|_| SendError::Busy)?;
        let (acknowledged, delivery) = oneshot::channel();
        state.queued.push_back(Queued { acknowledged, _place: place });
        Ok(Delivery(delivery))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
