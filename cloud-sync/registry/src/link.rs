//! How the registry speaks to its devices: messages of the contract, each to its topic.

use cloud_sync::contract::{self, ContractError, Message};
use cloud_sync::name::DeviceId;
use cloud_sync::session::{Counters, Outgoing, SendError, Sender};
use cloud_sync::topic::Root;

/// The way to the devices. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    sender: Sender,
    root: Root,
}

/// A message that was not sent.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It breaks a bound of the contract.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// There is no way to send it now; worth another try.
    #[error(transparent)]
    Send(#[from] SendError),
}

impl Link {
    /// Speaks through `sender`, below `root`.
    pub fn new(sender: Sender, root: Root) -> Self {
        Self { sender, root }
    }

    /// Hands a message to the broker, waiting for a place in the queue while there is a connection.
    pub async fn publish<M: Message>(&self, device: &DeviceId, message: &M) -> Result<(), LinkError> {
        let body = contract::encode(message)?.into();
        let topic = self.root.topic(device, M::KIND);
        let outgoing = Outgoing { topic, body, qos: M::KIND.qos(), retain: M::KIND.retained() };
        self.sender.publish(outgoing).await?;
        Ok(())
    }

    /// Where the devices have their topics.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Whether the broker can be reached now.
    pub fn is_online(&self) -> bool {
        self.sender.is_online()
    }

    /// What the connection has been through.
    pub fn counters(&self) -> &Counters {
        self.sender.counters()
    }
}
