//! The half of a session that does the work: connects, subscribes, hands over what comes in, and starts again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rumqttc::{AsyncClient, EventLoop, MqttState, Packet, Publish, SubscribeReasonCode};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::incoming::{Arrivals, Arrived};
use super::login::Renewal;
use super::outgoing::Departures;
use super::refusal::{explain, is_too_large};
use super::retry::Pauses;
use super::{BrokerUrl, CONNECT_TIMEOUT, Counters, Event, IN_FLIGHT, Identity, Incoming, Login, TlsFiles};
use crate::topic::Qos;

/// Places in the consumer's queue which messages can't take, so that a flood never hides that the connection was lost.
pub(super) const RESERVED_FOR_LINK: usize = 8;

/// How long a consumer that is behind is waited for, once until it is up with the messages again: a broker hands over
/// what it has in bursts, and nobody takes a thousand messages before they are there. Far less than any keep-alive.
const CATCH_UP: Duration = Duration::from_secs(1);

/// How long an answer of the broker may be awaited while nothing leaves, before the connection is taken for
/// dead. A broker that answers pings but loses an acknowledgement would otherwise hold up the client for ever.
pub(super) const STALL: Duration = Duration::from_secs(60);

/// A connection that lasted this long was a good one: the next attempt starts with the first pause again. One
/// that is lost at once, to a poisonous message or a twin with the same id, keeps backing off.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);

/// How long the last messages and the DISCONNECT may take.
const FAREWELL: Duration = Duration::from_secs(3);

/// The half that does the work; see [`Driver::run`].
pub struct Driver {
    pub(super) event_loop: EventLoop,
    pub(super) client: AsyncClient,
    pub(super) departures: Arc<Departures>,
    /// Where the consumer acknowledges messages by its own hand.
    pub(super) arrivals: Option<Arc<Arrivals>>,
    pub(super) identity: Identity,
    pub(super) tls: TlsFiles,
    pub(super) subscriptions: Vec<(String, Qos)>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) online: watch::Sender<bool>,
    pub(super) counters: Arc<Counters>,
    pub(super) broker: BrokerUrl,
    pub(super) connected_since: Option<Instant>,
    pub(super) longest_pause: Duration,
    /// [`STALL`], which a test shortens.
    pub(super) stall: Duration,
}

impl Driver {
    /// Keeps the connection until `stop`; then sends what is queued, says DISCONNECT and returns. A DISCONNECT
    /// suppresses the last will, so what the will would say is to be published before `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pauses = Pauses::new(self.longest_pause);
        let mut renewed = None;
        loop {
            // Once more, for a sender that was past its check when the last connection was lost.
            self.forget();
            let end = tokio::select! {
                end = self.attempt(renewed.take()) => end,
                () = stop.cancelled() => break,
            };
            let was_good =
                self.connected_since.take().is_some_and(|since| since.elapsed() >= GOOD_CONNECTION);
            if was_good {
                pauses = Pauses::new(self.longest_pause);
            }
            let reason = match end {
                End::Renewal(login) => {
                    tracing::debug!(broker = %self.broker, "connecting anew with a new login");
                    self.farewell().await;
                    self.forget();
                    self.report(Event::Disconnected("the login is renewed".to_owned()));
                    renewed = Some(login);
                    continue;
                }
                End::Lost(reason) => reason,
            };
            self.forget();
            let pause = pauses.next();
            tracing::warn!(broker = %self.broker, %reason, retry_in = ?pause, "no connection to the broker");
            self.counters.failures.fetch_add(1, Ordering::Relaxed);
            self.counters.pause_ms.store(pause.as_millis() as u64, Ordering::Relaxed);
            self.report(Event::Disconnected(reason));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
            self.counters.pause_ms.store(0, Ordering::Relaxed);
        }
        self.farewell().await;
        self.forget();
    }

    /// Logs in, and keeps one connection; says why it ended.
    async fn attempt(&mut self, renewed: Option<Login>) -> End {
        let login = match renewed {
            Some(login) => login,
            None => match self.identity.login().await {
                Ok(login) => login,
                Err(why) => return End::Lost(format!("no login: {why}")),
            },
        };
        let options = &mut self.event_loop.mqtt_options;
        if let Some(credentials) = &login.credentials {
            options.set_credentials(&credentials.username, &credentials.password);
        }
        if self.broker.tls && matches!(self.identity, Identity::Issued(_)) {
            match self.tls.transport(login.authorities.as_deref()) {
                Ok(transport) => drop(options.set_transport(transport)),
                Err(error) => return End::Lost(error.to_string()),
            }
        }
        let renewal = login.renew_in.map(|renew_in| Instant::now() + renew_in);
        self.connection(renewal).await.unwrap_or_else(End::Lost)
    }

    /// One connection, from the connect to its end, or to the moment at which its login is renewed.
    async fn connection(&mut self, renewal: Option<Instant>) -> Result<End, String> {
        self.wait_at_most(CONNECT_TIMEOUT);
        let mut renewal = Renewal::due(renewal);
        let mut progress = Instant::now();
        let mut is_patient = true;
        loop {
            is_patient = catch_up(&self.events, is_patient).await;
            if let Some(login) = renewal.take_login(self.is_idle()) {
                return Ok(End::Renewal(login));
            }
            let wake = progress + self.stall;
            let polled = tokio::select! {
                biased;
                polled = tokio::time::timeout_at(wake, self.event_loop.poll()) => polled,
                () = renewal.step(&self.identity) => continue,
            };
            let event = match polled {
                Ok(Ok(event)) => event,
                Ok(Err(error)) => {
                    if is_too_large(&error) {
                        self.counters.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                    return Err(explain(&error));
                }
                Err(_) if self.is_waiting() => {
                    return Err(format!("the broker has left messages unanswered for {:?}", self.stall));
                }
                Err(_) => {
                    progress = Instant::now();
                    continue;
                }
            };
            if is_progress(&event) {
                progress = Instant::now();
            }
            self.take(event)?;
        }
    }

    fn take(&mut self, event: rumqttc::Event) -> Result<(), String> {
        use rumqttc::Event;
        if matches!(event, Event::Incoming(_)) {
            // Whatever comes shows that the broker lives. Behind what a slow link still has to bring, the answer to a ping
            // can take longer than the client waits for it.
            self.event_loop.state.await_pingresp = false;
        }
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                // While a message leaves, nothing else is looked at; so a link that takes none is given up in the time in
                // which a ping would be missed.
                self.wait_at_most(self.event_loop.mqtt_options.keep_alive());
                self.subscribe()?;
            }
            Event::Incoming(Packet::SubAck(ack)) => self.subscribed(&ack.return_codes)?,
            Event::Incoming(Packet::Publish(publish)) => {
                // Not every broker sends again on this connection what it has no acknowledgement of, and until then no
                // later one could leave.
                let comes_again = self.comes_again(&publish);
                if !self.received(publish) && comes_again {
                    return Err("more messages came than can wait".to_owned());
                }
            }
            event => self.moved(event),
        }
        Ok(())
    }

    /// A message has come in, or moved on on its way out.
    fn moved(&self, event: rumqttc::Event) {
        use rumqttc::{Event, Outgoing};
        match event {
            Event::Incoming(Packet::Publish(publish)) => {
                let _ = self.received(publish);
            }
            Event::Incoming(Packet::PubAck(ack)) => self.departures.acknowledged(ack.pkid),
            Event::Outgoing(Outgoing::Publish(packet)) => self.departures.published(packet),
            Event::Outgoing(Outgoing::AwaitAck(_)) => self.departures.held_back(),
            _ => {}
        }
        if let Some(arrivals) = &self.arrivals {
            arrivals.flush();
        }
    }

    /// Bounds how long the client waits for the network to connect, or to take a message.
    fn wait_at_most(&mut self, longest: Duration) {
        let mut options = self.event_loop.network_options();
        // It counts in seconds; less than one would be none.
        options.set_connection_timeout(longest.as_secs().max(1));
        self.event_loop.set_network_options(options);
    }

    fn subscribe(&mut self) -> Result<(), String> {
        if self.subscriptions.is_empty() {
            return self.connected();
        }
        let sent = self.departures.subscribe(&self.subscriptions);
        sent.map_err(|error| format!("the subscriptions can't be sent: {error}"))
    }

    fn subscribed(&mut self, codes: &[SubscribeReasonCode]) -> Result<(), String> {
        let is_first = !*self.online.borrow();
        match codes.iter().position(|code| matches!(code, SubscribeReasonCode::Failure)) {
            Some(at) => {
                let filter = self.subscriptions.get(at).filter(|_| is_first);
                let filter = filter.map_or("what was asked for later", |(filter, _)| filter);
                Err(format!("the broker refused the subscription to {filter}; check its access list"))
            }
            None if is_first => self.connected(),
            None => Ok(()),
        }
    }

    fn connected(&mut self) -> Result<(), String> {
        // Before the event, so that who hears of the connection can use it.
        self.departures.open();
        self.online.send_replace(true);
        if !self.report(Event::Connected) {
            return Err("the consumer of this session is too far behind".to_owned());
        }
        self.connected_since = Some(Instant::now());
        self.counters.connects.fetch_add(1, Ordering::Relaxed);
        tracing::info!(broker = %self.broker, "connected to the broker");
        Ok(())
    }

    /// Hands a message over; false where there is no room for it.
    fn received(&self, publish: Publish) -> bool {
        self.counters.received.fetch_add(1, Ordering::Relaxed);
        self.counters.received_bytes.fetch_add(publish.payload.len() as u64, Ordering::Relaxed);
        let arrived = match &self.arrivals {
            Some(arrivals) => arrivals.arrived(&publish),
            None => Arrived::Message(None),
        };
        let Arrived::Message(acknowledgement) = arrived else { return true };
        let waiting = acknowledgement.clone();
        let message =
            Event::Message(Incoming { topic: publish.topic, body: publish.payload, acknowledgement });
        if self.events.capacity() <= RESERVED_FOR_LINK || !self.report(message) {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            if let Some(waiting) = waiting {
                waiting.put_off();
            }
            return false;
        }
        true
    }

    /// Whether the broker owes an answer: to the subscription, or to a message.
    fn is_waiting(&self) -> bool {
        !*self.online.borrow() || self.event_loop.state.inflight() > 0 || !self.departures.is_empty()
    }

    /// Whether the broker sends a message again that is not acknowledged on this connection.
    fn comes_again(&self, publish: &Publish) -> bool {
        self.arrivals.is_some() && publish.qos != rumqttc::QoS::AtMostOnce
    }

    /// Whether nothing is on its way in either direction.
    fn is_idle(&self) -> bool {
        self.departures.is_empty() && self.arrivals.as_ref().is_none_or(|arrivals| arrivals.is_empty())
    }

    /// Forgets the connection and all that was on its way out; what had come in is still handed over, but where it
    /// will come again.
    fn forget(&mut self) {
        self.online.send_replace(false);
        self.departures.close();
        self.event_loop.clean();
        self.event_loop.pending.clear();
        // The client keeps unread events and a message whose packet id is taken; the latter would hold up the
        // next connection for ever.
        let state =
            std::mem::replace(&mut self.event_loop.state, MqttState::new(IN_FLIGHT, self.arrivals.is_some()));
        for event in state.events {
            if let rumqttc::Event::Incoming(Packet::Publish(publish)) = event
                && !self.comes_again(&publish)
            {
                let _ = self.received(publish);
            }
        }
        if let Some(arrivals) = &self.arrivals {
            arrivals.close();
        }
    }

    /// Hands an event to the consumer; false where its queue is full. One that is gone misses nothing.
    fn report(&self, event: Event) -> bool {
        !matches!(self.events.try_send(event), Err(mpsc::error::TrySendError::Full(_)))
    }

    /// Sends what is queued, and a DISCONNECT.
    async fn farewell(&mut self) {
        self.online.send_replace(false);
        if self.event_loop.network.is_none() {
            return;
        }
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
                    // It is not acknowledged any more, so it comes again.
                    Ok(rumqttc::Event::Incoming(Packet::Publish(publish))) if self.comes_again(&publish) => {}
                    Ok(event) => self.moved(event),
                }
            }
        };
        let left = async {
            tokio::select! {
                () = leave => {}
                () = poll => {}
            }
        };
        if tokio::time::timeout(FAREWELL, left).await.is_err() {
            tracing::warn!(broker = %self.broker, "the last messages did not leave in time");
        }
    }
}

/// How a connection ended.
enum End {
    /// It was lost, or not made, for this reason.
    Lost(String),
    /// Its login is to be renewed, by this one.
    Renewal(Login),
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

/// Waits for room in the consumer's queue, unless it was waited for in vain; says whether to wait the next time.
async fn catch_up(events: &mpsc::Sender<Event>, is_patient: bool) -> bool {
    let wanted = RESERVED_FOR_LINK + 1;
    if events.capacity() >= wanted {
        return true;
    }
    is_patient && tokio::time::timeout(CATCH_UP, events.reserve_many(wanted)).await.is_ok()
}
