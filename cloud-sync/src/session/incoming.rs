//! What has come in and is not yet acknowledged, where the consumer acknowledges by its own hand.
//!
//! Invariants:
//! - Acknowledgements leave in the order in which the messages came: edgeHub ignores any other.
//! - A packet id of a lost connection is never acknowledged on the next one, where it may name another message.
//! - A message that the broker sends again while its consumer still holds it is not handed over twice.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rumqttc::{AsyncClient, Publish, QoS};

/// The right to acknowledge one message. Whoever has it must [`Acknowledgement::give`] it or
/// [`Acknowledgement::put_off`] the message: one that is not acknowledged holds up the acknowledgements of those behind
/// it.
#[derive(Clone)]
pub struct Acknowledgement {
    arrivals: Arc<Arrivals>,
    number: u64,
}

impl Acknowledgement {
    /// Says that the message is done with. Saying it twice, or after the connection was lost, changes nothing.
    pub fn give(&self) {
        self.arrivals.done(self.number);
    }

    /// Says that the message can't be taken now. It is handed over again when the broker has lost patience and sends it
    /// again.
    pub fn put_off(&self) {
        self.arrivals.put_off(self.number);
    }

    /// Whether the broker still waits for it. Where it does not, the message comes again.
    pub fn is_awaited(&self) -> bool {
        self.arrivals.lock().waiting.iter().any(|waiting| waiting.number == self.number)
    }
}

impl fmt::Debug for Acknowledgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Acknowledgement").field(&self.number).finish()
    }
}

/// The messages of one session that await their acknowledgement.
pub(super) struct Arrivals {
    client: AsyncClient,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    number: u64,
    packet: u16,
    /// Whether a consumer has it.
    held: bool,
    done: bool,
}

/// What has come.
pub(super) enum Arrived {
    /// A message, to be handed over; with the right to acknowledge it, where it is to be.
    Message(Option<Acknowledgement>),
    /// A message that its consumer still has.
    Known,
}

impl Arrivals {
    pub(super) fn new(client: AsyncClient) -> Arc<Self> {
        Arc::new(Self { client, state: Mutex::default() })
    }

    /// A message has come. One that the broker sends again keeps the place of its first coming.
    pub(super) fn arrived(self: &Arc<Self>, publish: &Publish) -> Arrived {
        if publish.qos == QoS::AtMostOnce {
            return Arrived::Message(None);
        }
        let mut state = self.lock();
        let known = state.waiting.iter_mut().find(|waiting| waiting.packet == publish.pkid);
        let number = match known {
            Some(Waiting { held: true, .. }) => return Arrived::Known,
            Some(known) => {
                known.held = true;
                known.number
            }
            None => {
                state.last += 1;
                let number = state.last;
                state.waiting.push_back(Waiting { number, packet: publish.pkid, held: true, done: false });
                number
            }
        };
        Arrived::Message(Some(Acknowledgement { arrivals: self.clone(), number }))
    }

    /// Sends what can be sent now: the acknowledgements of the oldest messages, as far as they are given.
    pub(super) fn flush(&self) {
        let mut state = self.lock();
        while let Some(oldest) = state.waiting.front().filter(|oldest| oldest.done) {
            let mut publish = Publish::new("", QoS::AtLeastOnce, Vec::new());
            publish.pkid = oldest.packet;
            if self.client.try_ack(&publish).is_err() {
                // The queue to the network is full; the session comes back when it has moved.
                return;
            }
            state.waiting.pop_front();
        }
    }

    /// The connection is lost: the broker sends again what it has no acknowledgement of.
    pub(super) fn close(&self) {
        self.lock().waiting.clear();
    }

    /// Whether all is acknowledged.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    fn done(&self, number: u64) {
        if let Some(waiting) = self.lock().waiting.iter_mut().find(|waiting| waiting.number == number) {
            waiting.done = true;
        }
        self.flush();
    }

    fn put_off(&self, number: u64) {
        if let Some(waiting) = self.lock().waiting.iter_mut().find(|waiting| waiting.number == number) {
            waiting.held = false;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
