//! The half of a session that does the work: connects, subscribes, hands over what comes in, and starts again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use rumqttc::{
    AsyncClient, ConnectionError, EventLoop, MqttState, Packet, Publish, StateError, SubscribeFilter,
    SubscribeReasonCode,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{BrokerUrl, Counters, Event, IN_FLIGHT, Incoming, native};
use crate::topic::Qos;

/// Places in the consumer's queue which messages can't take, so that a flood never hides that the connection was lost.
pub(super) const RESERVED_FOR_LINK: usize = 8;

/// How long an answer of the broker may be awaited while nothing leaves, before the connection is taken for
/// dead. A broker that answers pings but loses an acknowledgement would otherwise hold up the client for ever.
pub(super) const STALL: Duration = Duration::from_secs(60);

/// A connection that lasted this long was a good one: the next attempt starts with the first pause again. One
/// that is lost at once, to a poisonous message or a twin with the same id, keeps backing off.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);

/// How long the last messages and the DISCONNECT may take.
const FAREWELL: Duration = Duration::from_secs(3);

/// First and longest pause between two attempts to connect, before jitter: a blip costs a second, and ten
/// thousand devices that come back together are spread over more than a minute.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// See [`FIRST_RETRY`].
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// The half that does the work; see [`Driver::run`].
pub struct Driver {
    pub(super) event_loop: EventLoop,
    pub(super) client: AsyncClient,
    pub(super) subscriptions: Vec<(String, Qos)>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) online: watch::Sender<bool>,
    pub(super) counters: Arc<Counters>,
    pub(super) broker: BrokerUrl,
    pub(super) connected_since: Option<Instant>,
    /// [`STALL`], which a test shortens.
    pub(super) stall: Duration,
}

impl Driver {
    /// Keeps the connection until `stop`; then sends what is queued, says DISCONNECT and returns. A DISCONNECT
    /// suppresses the last will, so what the will would say is to be published before `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pauses = retries();
        loop {
            // Once more, for a sender that was past its check when the last connection was lost.
            self.forget();
            let reason = tokio::select! {
                reason = self.connection() => reason,
                () = stop.cancelled() => break,
            };
            self.forget();
            if self.connected_since.take().is_some_and(|since| since.elapsed() >= GOOD_CONNECTION) {
                pauses = retries();
            }
            let pause = pauses.next().unwrap_or(LONGEST_RETRY);
            tracing::warn!(broker = %self.broker, %reason, retry_in = ?pause, "no connection to the broker");
            self.report(Event::Disconnected(reason));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        self.online.send_replace(false);
        if self.event_loop.network.is_some() && tokio::time::timeout(FAREWELL, self.farewell()).await.is_err()
        {
            tracing::warn!(broker = %self.broker, "the last messages did not leave in time");
        }
    }

    /// One connection, from the connect to its end; says why it ended.
    async fn connection(&mut self) -> String {
        let mut progress = Instant::now();
        loop {
            let polled = tokio::time::timeout_at(progress + self.stall, self.event_loop.poll()).await;
            let event = match polled {
                Ok(Ok(event)) => event,
                Ok(Err(error)) => {
                    if is_too_large(&error) {
                        self.counters.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                    return error.to_string();
                }
                Err(_) if self.is_waiting() => {
                    return format!("the broker has left messages unanswered for {:?}", self.stall);
                }
                Err(_) => {
                    progress = Instant::now();
                    continue;
                }
            };
            if is_progress(&event) {
                progress = Instant::now();
            }
            let done = match event {
                rumqttc::Event::Incoming(Packet::ConnAck(_)) => self.subscribe(),
                rumqttc::Event::Incoming(Packet::SubAck(ack)) => self.subscribed(&ack.return_codes),
                rumqttc::Event::Incoming(Packet::Publish(publish)) => {
                    self.received(publish);
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(reason) = done {
                return reason;
            }
        }
    }

    fn subscribe(&mut self) -> Result<(), String> {
        if self.subscriptions.is_empty() {
            return self.connected();
        }
        let filter = |(filter, qos): &(String, Qos)| SubscribeFilter::new(filter.clone(), native(*qos));
        self.client
            .try_subscribe_many(self.subscriptions.iter().map(filter))
            .map_err(|error| format!("the subscriptions can't be sent: {error}"))
    }

    fn subscribed(&mut self, codes: &[SubscribeReasonCode]) -> Result<(), String> {
        match codes.iter().position(|code| matches!(code, SubscribeReasonCode::Failure)) {
            Some(at) => {
                let filter = self.subscriptions.get(at).map_or("?", |(filter, _)| filter);
                Err(format!("the broker refused the subscription to {filter}; check its access list"))
            }
            None => self.connected(),
        }
    }

    fn connected(&mut self) -> Result<(), String> {
        // Before the event, so that who hears of the connection can use it.
        self.online.send_replace(true);
        if !self.report(Event::Connected) {
            return Err("the consumer of this session is too far behind".to_owned());
        }
        self.connected_since = Some(Instant::now());
        self.counters.connects.fetch_add(1, Ordering::Relaxed);
        tracing::info!(broker = %self.broker, "connected to the broker");
        Ok(())
    }

    fn received(&self, publish: Publish) {
        self.counters.received.fetch_add(1, Ordering::Relaxed);
        self.counters.received_bytes.fetch_add(publish.payload.len() as u64, Ordering::Relaxed);
        let message = Event::Message(Incoming { topic: publish.topic, body: publish.payload });
        if self.events.capacity() <= RESERVED_FOR_LINK || !self.report(message) {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the broker owes an answer: to the subscription, or to a message.
    fn is_waiting(&self) -> bool {
        !*self.online.borrow() || self.event_loop.state.inflight() > 0
    }

    /// Forgets the connection and all that was on its way out; what had come in is still handed over.
    fn forget(&mut self) {
        self.online.send_replace(false);
        self.event_loop.clean();
        self.event_loop.pending.clear();
        // The client keeps unread events and a message whose packet id is taken; the latter would hold up the
        // next connection for ever.
        let state = std::mem::replace(&mut self.event_loop.state, MqttState::new(IN_FLIGHT, false));
        for event in state.events {
            if let rumqttc::Event::Incoming(Packet::Publish(publish)) = event {
                self.received(publish);
            }
        }
    }

    /// Hands an event to the consumer; false where its queue is full. One that is gone misses nothing.
    fn report(&self, event: Event) -> bool {
        !matches!(self.events.try_send(event), Err(mpsc::error::TrySendError::Full(_)))
    }

    async fn farewell(&mut self) {
        let client = self.client.clone();
        let leave = async {
            // Beside the polling, which alone makes room in a full queue.
            let _ = client.disconnect().await;
            std::future::pending::<()>().await;
        };
        let poll = async {
            loop {
                match self.event_loop.poll().await {
                    Ok(rumqttc::Event::Outgoing(rumqttc::Outgoing::Disconnect)) | Err(_) => return,
                    Ok(rumqttc::Event::Incoming(Packet::Publish(publish))) => self.received(publish),
                    Ok(_) => {}
                }
            }
        };
        tokio::select! {
            () = leave => {}
            () = poll => {}
        }
    }
}

/// Whether something left, or an answer came. Pings and their answers say nothing about messages.
fn is_progress(event: &rumqttc::Event) -> bool {
    use rumqttc::{Event, Outgoing};
    matches!(
        event,
        Event::Incoming(Packet::ConnAck(_) | Packet::PubAck(_))
            | Event::Outgoing(Outgoing::Publish(_) | Outgoing::Subscribe(_))
    )
}

fn is_too_large(error: &ConnectionError) -> bool {
    use rumqttc::Error::PayloadSizeLimitExceeded;
    matches!(error, ConnectionError::MqttState(StateError::Deserialization(PayloadSizeLimitExceeded(_))))
}

/// The pauses between attempts to connect; they never end.
fn retries() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_RETRY)
        .with_max_delay(LONGEST_RETRY)
        .with_jitter()
        .without_max_times()
        .build()
}
