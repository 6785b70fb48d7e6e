//! One MQTT 3.1.1 connection that survives: connects, subscribes, and does both again for ever.
//!
//! The only file that names the MQTT client. It knows nothing of our messages, so the same session carries
//! the registry's link, the device's link and the device's local routes.
//!
//! Invariants:
//! - Nothing is promised across a lost connection: what was queued or unacknowledged then is forgotten here
//!   (the client drops it too when the broker forgot the session), and whoever needs it sends it again after
//!   [`Event::Connected`]. So no stale state is ever published after a reconnect.
//! - [`Event::Connected`] comes after the broker has granted every subscription.
//! - A slow consumer never stops the keep-alive: what does not fit into its queue is dropped and counted.
//! - An undecodable or foreign packet ends the connection, never the process; retries back off with jitter.

mod broker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use rumqttc::{AsyncClient, EventLoop, LastWill, MqttOptions, NetworkOptions, Packet, QoS, SubscribeFilter};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use broker::{BrokerUrl, BrokerUrlError, Credentials, TlsError, TlsFiles};

use crate::limits::MAX_PACKET_BYTES;
use crate::topic::Qos;

/// Messages that may wait for the consumer: 256 of at most 128 KiB bound the memory to 32 MiB.
const INCOMING_QUEUE: usize = 256;

/// Messages that may wait for the network; the sender waits when they are used up.
const OUTGOING_QUEUE: usize = 64;

/// Unacknowledged QoS 1 messages; more brings no speed (measured: 100 to 1000 adds 2 %).
const IN_FLIGHT: u16 = 100;

/// Longest wait for a TCP connect, a TLS handshake and a CONNACK. A link of 100 kbit/s needs a few seconds.
const CONNECT_TIMEOUT_SECONDS: u64 = 20;

/// How long messages may wait without one of them leaving, before the connection is taken for dead. A broker
/// that loses an acknowledgement would otherwise hold up the client for ever.
const STALL: Duration = Duration::from_secs(60);

/// How long the last messages and the DISCONNECT may take.
const FAREWELL: Duration = Duration::from_secs(3);

/// First and longest pause between two attempts to connect, before jitter: a blip costs a second, and ten
/// thousand devices that come back together are spread over more than a minute.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// See [`FIRST_RETRY`].
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// How to connect, and what to listen to.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the broker is.
    pub broker: BrokerUrl,
    /// The client's id; a broker disconnects an older client of the same id.
    pub client_id: String,
    /// User name and password, where the broker wants them.
    pub credentials: Option<Credentials>,
    /// Certificates, for `mqtts://`.
    pub tls: TlsFiles,
    /// Interval of pings; a dead peer is noticed after at most two of them.
    pub keep_alive: Duration,
    /// What to listen to.
    pub subscriptions: Vec<(String, Qos)>,
    /// What the broker shall publish when this client is lost.
    pub last_will: Option<Outgoing>,
}

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where to.
    pub topic: String,
    /// What.
    pub body: Bytes,
    /// How.
    pub qos: Qos,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
}

/// A message that came in.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// Where it was published.
    pub topic: String,
    /// What; at most [`MAX_PACKET_BYTES`].
    pub body: Bytes,
}

/// What happens on the connection.
#[derive(Debug, Clone)]
pub enum Event {
    /// Connected and subscribed: now is the time to publish all state anew.
    Connected,
    /// The connection is gone, for this reason; it is being made again.
    Disconnected(String),
    /// A message came in.
    Message(Incoming),
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no connection now. Send again after [`Event::Connected`].
    #[error("not connected to the broker")]
    Offline,
    /// The queue to the network is full.
    #[error("the queue to the broker is full")]
    Busy,
}

/// What the session has been through.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections made.
    pub connects: AtomicU64,
    /// Messages received.
    pub received: AtomicU64,
    /// Payload bytes received.
    pub received_bytes: AtomicU64,
    /// Messages handed to the network.
    pub sent: AtomicU64,
    /// Payload bytes handed to the network.
    pub sent_bytes: AtomicU64,
    /// Messages that were received and dropped, because the consumer was behind.
    pub dropped: AtomicU64,
}

/// The sending half. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sender {
    client: AsyncClient,
    online: watch::Receiver<bool>,
    counters: Arc<Counters>,
}

/// The half that does the work; see [`Driver::run`].
pub struct Driver {
    event_loop: EventLoop,
    client: AsyncClient,
    subscriptions: Vec<(String, Qos)>,
    events: mpsc::Sender<Event>,
    online: watch::Sender<bool>,
    counters: Arc<Counters>,
    broker: BrokerUrl,
}

/// Makes a session. Nothing is connected before [`Driver::run`].
pub fn open(options: Options) -> Result<(Sender, mpsc::Receiver<Event>, Driver), TlsError> {
    let mut mqtt = MqttOptions::new(&options.client_id, &options.broker.host, options.broker.port);
    mqtt.set_clean_session(true)
        .set_keep_alive(options.keep_alive)
        .set_inflight(IN_FLIGHT)
        .set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES);
    if let Some(credentials) = &options.credentials {
        mqtt.set_credentials(&credentials.username, &credentials.password);
    }
    if let Some(will) = options.last_will {
        mqtt.set_last_will(LastWill::new(will.topic, will.body, native(will.qos), will.retain));
    }
    if options.broker.tls {
        mqtt.set_transport(options.tls.transport()?);
    }
    let (client, mut event_loop) = AsyncClient::new(mqtt, OUTGOING_QUEUE);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECT_TIMEOUT_SECONDS);
    event_loop.set_network_options(network);

    let (events, receiver) = mpsc::channel(INCOMING_QUEUE);
    let (online, is_online) = watch::channel(false);
    let counters = Arc::new(Counters::default());
    let sender = Sender { client: client.clone(), online: is_online, counters: counters.clone() };
    let subscriptions = options.subscriptions;
    let driver =
        Driver { event_loop, client, subscriptions, events, online, counters, broker: options.broker };
    Ok((sender, receiver, driver))
}

impl Sender {
    /// Publishes a message, waiting for a place in the queue while there is a connection.
    pub async fn publish(&self, message: Outgoing) -> Result<(), SendError> {
        let mut online = self.online.clone();
        if !*online.borrow_and_update() {
            return Err(SendError::Offline);
        }
        let Outgoing { topic, body, qos, retain } = message;
        let bytes = body.len() as u64;
        let publish = self.client.publish_bytes(topic, native(qos), retain, body);
        tokio::select! {
            result = publish => result.map_err(|_| SendError::Offline)?,
            _ = online.changed() => return Err(SendError::Offline),
        }
        self.counters.sent.fetch_add(1, Ordering::Relaxed);
        self.counters.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Publishes a message if there is a connection and a place in the queue.
    pub fn try_publish(&self, message: Outgoing) -> Result<(), SendError> {
        if !self.is_online() {
            return Err(SendError::Offline);
        }
        let bytes = message.body.len() as u64;
        let qos = native(message.qos);
        self.client
            .try_publish(message.topic, qos, message.retain, message.body)
            .map_err(|_| SendError::Busy)?;
        self.counters.sent.fetch_add(1, Ordering::Relaxed);
        self.counters.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Whether there is a connection now.
    pub fn is_online(&self) -> bool {
        *self.online.borrow()
    }

    /// What the session has been through.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Driver {
    /// Keeps the connection until `stop`; then sends what is queued, says DISCONNECT and returns. A DISCONNECT
    /// suppresses the last will, so what the will would say is to be published before `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pauses = retries();
        loop {
            let reason = tokio::select! {
                reason = self.connection(&mut pauses) => reason,
                () = stop.cancelled() => break,
            };
            self.forget();
            let pause = pauses.next().unwrap_or(LONGEST_RETRY);
            tracing::warn!(broker = %self.broker, %reason, retry_in = ?pause, "connection to the broker lost");
            self.report(Event::Disconnected(reason));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        if *self.online.borrow() {
            self.online.send_replace(false);
            let _ = tokio::time::timeout(FAREWELL, self.farewell()).await;
        }
    }

    /// One connection, from the connect to its end; says why it ended.
    async fn connection(&mut self, pauses: &mut ExponentialBackoff) -> String {
        let mut progress = Instant::now();
        loop {
            let polled = tokio::time::timeout_at(progress + STALL, self.event_loop.poll()).await;
            let event = match polled {
                Ok(Ok(event)) => event,
                Ok(Err(error)) => return error.to_string(),
                Err(_) if self.event_loop.network.is_some() && self.is_stalled() => {
                    return format!("no message could be sent for {STALL:?}");
                }
                Err(_) => {
                    progress = Instant::now();
                    continue;
                }
            };
            match event {
                rumqttc::Event::Incoming(Packet::ConnAck(_)) => {
                    let filters = self.subscriptions.iter();
                    let filters = filters.map(|(f, qos)| SubscribeFilter::new(f.clone(), native(*qos)));
                    let filters: Vec<_> = filters.collect();
                    if filters.is_empty() {
                        self.connected(pauses);
                    } else if self.client.try_subscribe_many(filters).is_err() {
                        return "the subscriptions could not be queued".to_owned();
                    }
                }
                rumqttc::Event::Incoming(Packet::SubAck(ack)) => {
                    let refused = |code: &rumqttc::SubscribeReasonCode| {
                        matches!(code, rumqttc::SubscribeReasonCode::Failure)
                    };
                    if let Some(at) = ack.return_codes.iter().position(refused) {
                        let filter = self.subscriptions.get(at).map_or("?", |(filter, _)| filter);
                        return format!(
                            "the broker refused the subscription to {filter}; check its access list"
                        );
                    }
                    self.connected(pauses);
                }
                rumqttc::Event::Incoming(Packet::Publish(publish)) => {
                    self.counters.received.fetch_add(1, Ordering::Relaxed);
                    self.counters.received_bytes.fetch_add(publish.payload.len() as u64, Ordering::Relaxed);
                    self.report(Event::Message(Incoming { topic: publish.topic, body: publish.payload }));
                }
                rumqttc::Event::Incoming(Packet::Disconnect) => return "the broker closed it".to_owned(),
                rumqttc::Event::Incoming(Packet::PubAck(_)) | rumqttc::Event::Outgoing(_) => {
                    progress = Instant::now();
                }
                rumqttc::Event::Incoming(_) => {}
            }
        }
    }

    fn connected(&mut self, pauses: &mut ExponentialBackoff) {
        *pauses = retries();
        self.counters.connects.fetch_add(1, Ordering::Relaxed);
        self.online.send_replace(true);
        tracing::info!(broker = %self.broker, "connected to the broker");
        self.report(Event::Connected);
    }

    fn is_stalled(&self) -> bool {
        self.event_loop.state.inflight() > 0
    }

    /// Forgets the connection and all that was on its way.
    fn forget(&mut self) {
        self.online.send_replace(false);
        self.event_loop.clean();
        self.event_loop.pending.clear();
    }

    fn report(&self, event: Event) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            if !matches!(event, Event::Message(_)) {
                tracing::warn!(?event, "the session's consumer is behind and misses an event");
            }
        }
    }

    async fn farewell(&mut self) {
        if self.client.disconnect().await.is_err() {
            return;
        }
        loop {
            match self.event_loop.poll().await {
                Ok(rumqttc::Event::Outgoing(rumqttc::Outgoing::Disconnect)) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
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

fn native(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
    }
}
