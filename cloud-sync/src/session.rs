//! One MQTT 3.1.1 connection that survives: connects, subscribes, and does both again for ever.
//!
//! Only this file and its folder name the MQTT client. They know nothing of our messages, so the same session
//! carries the registry's link, the device's link and the device's local routes.
//!
//! Invariants:
//! - Nothing is promised across a lost connection: what was queued or unacknowledged then is forgotten here
//!   (the client drops it too when the broker forgot the session), its [`Delivery`] says so, and whoever needs it
//!   sends it again after [`Event::Connected`]. So no stale state is ever published after a reconnect.
//! - [`Event::Connected`] comes after the broker has granted every subscription, and is never missed: a
//!   connection that can't be told to the consumer is given up and made again.
//! - A slow consumer never stops the keep-alive: it is waited for a moment, then messages that do not fit into its queue
//!   are dropped and counted; in a persistent session they are not acknowledged, and come again.
//! - A peer that is gone without a word is noticed within two intervals of pings; one that is slow is not taken for it.
//! - An undecodable or foreign packet ends the connection, never the process; retries back off with jitter.

mod broker;
mod driver;
mod incoming;
mod login;
mod outgoing;
mod refusal;
mod retry;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::{AsyncClient, LastWill, MqttOptions, NetworkOptions, QoS};
use tokio::sync::{mpsc, watch};

pub use broker::{
    BrokerUrl, BrokerUrlError, Credentials, TlsError, TlsFiles, certificates, system_authorities,
};
pub use driver::Driver;
pub use incoming::Acknowledgement;
pub use login::{Identity, Login, PendingLogin};
pub use outgoing::Delivery;
pub use retry::LONGEST_PAUSE;

use incoming::Arrivals;
use outgoing::Departures;

use crate::limits::MAX_PACKET_BYTES;
use crate::topic::Qos;

/// Events that may wait for the consumer. Every consumer takes them at once and has bounds of its own, so this is for a
/// burst; 256 of the largest would be 80 MiB.
const INCOMING_QUEUE: usize = 256;

/// Messages that may wait for the network; the sender waits when they are used up.
const OUTGOING_QUEUE: usize = 64;

/// Places beside them in the client's queue, for subscriptions and acknowledgements.
const CONTROL_QUEUE: usize = INCOMING_QUEUE;

/// Unacknowledged QoS 1 messages; more brings no speed (measured: 100 to 1000 adds 2 %).
const IN_FLIGHT: u16 = 100;

/// Longest wait for a TCP connect, a TLS handshake and a CONNACK. A link of 100 kbit/s needs a few seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest wait for whoever issues logins; it is on this machine.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(25);

/// How to connect, and what to listen to.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the broker is.
    pub broker: BrokerUrl,
    /// The client's id; a broker disconnects an older client of the same id.
    pub client_id: String,
    /// Who this client is.
    pub identity: Identity,
    /// Certificates, for `mqtts://`.
    pub tls: TlsFiles,
    /// Whether the broker shall keep this client's subscriptions and unacknowledged messages while it is away.
    /// Then each message with an [`Incoming::acknowledgement`] must be acknowledged by the consumer's own hand.
    pub persistent: bool,
    /// Interval of pings, at least a second; a dead peer is noticed after at most two of them.
    pub keep_alive: Duration,
    /// The longest pause between two attempts to connect, at least a second.
    pub longest_pause: Duration,
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
    /// In a persistent session, how to tell the broker that the message is done with.
    pub acknowledgement: Option<Acknowledgement>,
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
    /// No broker would take it, so sending it again is of no use.
    #[error("a message can't be published: {0}")]
    Refused(&'static str),
}

/// What the session has been through.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections made.
    pub connects: AtomicU64,
    /// Connections that were lost, and attempts that made none.
    pub failures: AtomicU64,
    /// The pause before the next attempt, in milliseconds; 0 while there is none.
    pub pause_ms: AtomicU64,
    /// Messages received.
    pub received: AtomicU64,
    /// Payload bytes received.
    pub received_bytes: AtomicU64,
    /// Messages handed to the network.
    pub sent: AtomicU64,
    /// Payload bytes handed to the network.
    pub sent_bytes: AtomicU64,
    /// Messages that were received and dropped, because the consumer was behind or they were too large.
    pub dropped: AtomicU64,
}

/// The sending half. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sender {
    departures: Arc<Departures>,
    online: watch::Receiver<bool>,
    counters: Arc<Counters>,
}

impl Options {
    /// A session with a broker that wants no credentials; nothing to listen to, no last will, a ping a minute.
    pub fn new(broker: BrokerUrl, client_id: impl Into<String>) -> Self {
        Self {
            broker,
            client_id: client_id.into(),
            identity: Identity::Fixed(None),
            tls: TlsFiles::default(),
            persistent: false,
            keep_alive: Duration::from_secs(60),
            longest_pause: LONGEST_PAUSE,
            subscriptions: Vec::new(),
            last_will: None,
        }
    }
}

/// Makes a session. Nothing is connected before [`Driver::run`].
pub fn open(options: Options) -> Result<(Sender, mpsc::Receiver<Event>, Driver), TlsError> {
    let mut mqtt = MqttOptions::new(&options.client_id, &options.broker.host, options.broker.port);
    mqtt.set_clean_session(!options.persistent)
        .set_manual_acks(options.persistent)
        // What the client takes without a panic, and what its 16 bits on the wire hold.
        .set_keep_alive(
            options.keep_alive.clamp(Duration::from_secs(1), Duration::from_secs(u16::MAX.into())),
        )
        .set_inflight(IN_FLIGHT)
        .set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES);
    if let Some(will) = options.last_will {
        mqtt.set_last_will(LastWill::new(will.topic, will.body, native(will.qos), will.retain));
    }
    // Those of an issued login come with it.
    if options.broker.tls && matches!(options.identity, Identity::Fixed(_)) {
        mqtt.set_transport(options.tls.transport(None)?);
    }
    let (client, mut event_loop) = AsyncClient::new(mqtt, OUTGOING_QUEUE + CONTROL_QUEUE);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    event_loop.set_network_options(network);

    let (events, receiver) = mpsc::channel(INCOMING_QUEUE);
    let (online, is_online) = watch::channel(false);
    let counters = Arc::new(Counters::default());
    let departures = Arc::new(Departures::new(client.clone(), OUTGOING_QUEUE));
    let sender = Sender { departures: departures.clone(), online: is_online, counters: counters.clone() };
    let driver = Driver {
        event_loop,
        arrivals: options.persistent.then(|| Arrivals::new(client.clone())),
        departures,
        client,
        identity: options.identity,
        tls: options.tls,
        subscriptions: options.subscriptions,
        events,
        online,
        counters,
        broker: options.broker,
        connected_since: None,
        longest_pause: options.longest_pause,
        stall: driver::STALL,
    };
    Ok((sender, receiver, driver))
}

impl Sender {
    /// Publishes a message, waiting for a place in the queue while there is a connection.
    pub async fn publish(&self, message: Outgoing) -> Result<Delivery, SendError> {
        message.check()?;
        let mut online = self.online.clone();
        if !*online.borrow_and_update() {
            return Err(SendError::Offline);
        }
        let bytes = message.body.len();
        let delivery = tokio::select! {
            delivery = self.departures.send(message) => delivery?,
            _ = online.changed() => return Err(SendError::Offline),
        };
        self.count(bytes);
        Ok(delivery)
    }

    /// Publishes a message if there is a connection and a place in the queue.
    pub fn try_publish(&self, message: Outgoing) -> Result<Delivery, SendError> {
        message.check()?;
        let bytes = message.body.len();
        let delivery = self.departures.try_send(message)?;
        self.count(bytes);
        Ok(delivery)
    }

    /// Listens to more, for as long as this connection lasts. A broker that refuses ends the connection.
    pub fn subscribe(&self, filters: &[(String, Qos)]) -> Result<(), SendError> {
        if self.is_online() { self.departures.subscribe(filters) } else { Err(SendError::Offline) }
    }

    /// Whether there is a connection now.
    pub fn is_online(&self) -> bool {
        *self.online.borrow()
    }

    /// Waits for a connection. Never ends once the session is over.
    pub async fn online(&self) {
        if self.online.clone().wait_for(|online| *online).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What the session has been through.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn count(&self, bytes: usize) {
        self.counters.sent.fetch_add(1, Ordering::Relaxed);
        self.counters.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Outgoing {
    /// The client ends the connection over a message that it can't send; so such a one never gets there.
    fn check(&self) -> Result<(), SendError> {
        let topic = &self.topic;
        if topic.is_empty() || topic.len() > usize::from(u16::MAX) || topic.contains(['+', '#', '\0']) {
            return Err(SendError::Refused("its topic is empty, too long or holds a wildcard"));
        }
        // 16 bytes for the packet's header, the topic's length and the packet id.
        if topic.len() + self.body.len() + 16 > MAX_PACKET_BYTES {
            return Err(SendError::Refused("it is too large"));
        }
        Ok(())
    }
}

fn native(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
    }
}

#[cfg(test)]
mod tests;
