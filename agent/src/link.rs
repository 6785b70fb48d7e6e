//! The device's end of the wire: orders in, reports and rows out, whatever carries them.
//!
//! The seam for other clouds: everything above speaks in [`Order`]s and in the messages of the contract; only
//! this file knows on which topics they travel, and [`cloud_sync::session`] does all the I/O.
//!
//! A link may have no cloud, and may get one or another while the agent runs: then it is attached to another session.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use cloud_sync::contract::{
    Chunk, Command, ContractError, Desired, Fetch, Message, Presence, Receipt, Reply, Reported, Telemetry,
    decode, encode,
};
use cloud_sync::name::DeviceId;
use cloud_sync::session::{BrokerUrl, Counters, Event, Incoming, Options, Outgoing, SendError, Sender};
use cloud_sync::topic::{Kind, Root};

/// Who this device is, and where its topics are.
#[derive(Debug, Clone)]
pub struct Address {
    /// The root of the site's topics.
    pub root: Root,
    /// This device.
    pub device: DeviceId,
}

/// The cloud's registry, as one device speaks to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// The name under which it knows this device.
    pub device: DeviceId,
    /// Where it is, and how it is trusted.
    pub cloud: crate::config::Cloud,
}

/// Which registry there is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uplink {
    /// None.
    None,
    /// One, and it can't be told which: what says so is wrong.
    Unclear,
    /// This one.
    Registry(Box<Registry>),
}

/// What the cloud says.
#[derive(Debug)]
pub enum Order {
    /// The link is up: say everything anew.
    Connected,
    /// The link is down.
    Disconnected,
    /// What to run.
    Desired(Desired, Origin),
    /// A piece of a bundle.
    Chunk(Chunk),
    /// Rows are durable.
    Receipt(Receipt),
    /// Something to do once.
    Command(Command),
}

/// Which registry says something, and to which device: revisions compare only within one of these.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Origin(String);

/// The sending end. Cheap to clone.
#[derive(Clone, Default)]
pub struct Link {
    line: Arc<RwLock<Option<Line>>>,
    /// Messages that could not be believed.
    refused: Arc<AtomicU64>,
}

/// A session, and the address that it was made with.
#[derive(Clone)]
struct Line {
    address: Address,
    origin: Origin,
    sender: Sender,
}

/// Why a message did not leave.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Not now.
    #[error(transparent)]
    Send(#[from] SendError),
    /// Not ever.
    #[error(transparent)]
    Contract(#[from] ContractError),
}

impl Address {
    /// Completes the session's options: what to listen to, and the will that marks this device as gone.
    pub fn prepare(&self, options: &mut Options, gone: &Presence) -> Result<(), ContractError> {
        options.subscriptions = self.root.of_device(&self.device);
        options.last_will = Some(self.outgoing(gone)?);
        Ok(())
    }

    fn outgoing<M: Message>(&self, message: &M) -> Result<Outgoing, ContractError> {
        let body = Bytes::from(encode(message)?);
        let topic = self.root.topic(&self.device, M::KIND);
        Ok(Outgoing { topic, body, qos: M::KIND.qos(), retain: M::KIND.retained() })
    }
}

impl Link {
    /// Goes on over a session that was made with this address, with this broker.
    pub fn attach(&self, address: Address, broker: &BrokerUrl, sender: Sender) {
        let origin = Origin(format!("{broker} {}", address.root.topic(&address.device, Kind::Desired)));
        let line = Line { address, origin, sender };
        *self.line.write().unwrap_or_else(PoisonError::into_inner) = Some(line);
    }

    /// Goes on without a cloud.
    pub fn detach(&self) {
        *self.line.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether there is a cloud, connected or not.
    pub fn is_attached(&self) -> bool {
        self.line().is_some()
    }

    /// What an event of the session orders. `None` for what is not for us or can't be believed; the latter is
    /// counted.
    pub fn order(&self, event: Event) -> Option<Order> {
        match event {
            Event::Connected => Some(Order::Connected),
            Event::Disconnected(_) => Some(Order::Disconnected),
            Event::Message(message) => self.read(&message).unwrap_or_else(|error| {
                self.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(topic = %message.topic, %error, "message refused");
                None
            }),
        }
    }

    /// Says whether this device is there.
    pub async fn presence(&self, presence: &Presence) -> Result<(), LinkError> {
        self.send(presence).await
    }

    /// Says what this device is.
    pub async fn report(&self, reported: &Reported) -> Result<(), LinkError> {
        self.send(reported).await
    }

    /// Asks for pieces.
    pub async fn fetch(&self, fetch: &Fetch) -> Result<(), LinkError> {
        self.send(fetch).await
    }

    /// Sends rows.
    pub async fn telemetry(&self, telemetry: &Telemetry) -> Result<(), LinkError> {
        self.send(telemetry).await
    }

    /// Answers a command.
    pub async fn reply(&self, reply: &Reply) -> Result<(), LinkError> {
        self.send(reply).await
    }

    /// Whether the link is up.
    pub fn is_online(&self) -> bool {
        self.line().is_some_and(|line| line.sender.is_online())
    }

    /// What the session has been through.
    pub fn counters(&self) -> Option<Arc<Counters>> {
        self.line().map(|line| line.sender.counters().clone())
    }

    /// Messages that could not be believed.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    async fn send<M: Message>(&self, message: &M) -> Result<(), LinkError> {
        let Line { address, sender, .. } = self.line().ok_or(SendError::Offline)?;
        sender.publish(address.outgoing(message)?).await?;
        Ok(())
    }

    fn line(&self) -> Option<Line> {
        self.line.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn read(&self, message: &Incoming) -> Result<Option<Order>, ContractError> {
        let Some(Line { address, origin, .. }) = self.line() else { return Ok(None) };
        let Some((device, kind)) = address.root.parse(&message.topic) else { return Ok(None) };
        if device != address.device {
            return Ok(None);
        }
        Ok(Some(match kind {
            Kind::Desired => Order::Desired(decode(&message.body)?, origin),
            Kind::Chunk => Order::Chunk(decode(&message.body)?),
            Kind::Receipt => Order::Receipt(decode(&message.body)?),
            Kind::Command => Order::Command(decode(&message.body)?),
            Kind::Presence | Kind::Reported | Kind::Fetch | Kind::Telemetry | Kind::Reply => return Ok(None),
        }))
    }
}
