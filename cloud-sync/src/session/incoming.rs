//! What has come in and is not yet acknowledged, where the consumer acknowledges by its own hand.
//!
//! Invariants:
//! - Acknowledgements leave in the order in which the messages came: edgeHub ignores any other.
//! - A packet id of a lost connection is never acknowledged on the next one, where it may name another message.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rumqttc::{AsyncClient, Publish, QoS};

/// The right to acknowledge one message. A message that is not acknowledged holds up the acknowledgements of those
/// behind it, and comes again: when the broker loses patience, or on the next connection.
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
    done: bool,
}

impl Arrivals {
    pub(super) fn new(client: AsyncClient) -> Arc<Self> {
        Arc::new(Self { client, state: Mutex::default() })
    }

    /// A message has come. One that the broker sends again takes the place of its first coming.
    pub(super) fn arrived(self: &Arc<Self>, publish: &Publish) -> Option<Acknowledgement> {
        if publish.qos == QoS::AtMostOnce {
            return None;
        }
        let mut state = self.lock();
        state.waiting.retain(|waiting| waiting.packet != publish.pkid);
        state.last += 1;
        let number = state.last;
        state.waiting.push_back(Waiting { number, packet: publish.pkid, done: false });
        Some(Acknowledgement { arrivals: self.clone(), number })
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
