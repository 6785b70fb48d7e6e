//! From the link to the parts: who gets which order.

use cloud_sync::contract::{Command, Receipt};
use cloud_sync::session::Event;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::deploy::driver;
use crate::fetch::Fetcher;
use crate::link::{Link, Order};

/// Hands what the cloud says to the part that it is for. Never waits for any of them but the deployments.
pub(super) struct Dispatcher {
    pub(super) link: Link,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) orders: mpsc::Sender<driver::Order>,
    pub(super) fetcher: Fetcher,
    pub(super) receipts: mpsc::Sender<Receipt>,
    pub(super) connects: watch::Sender<u64>,
    pub(super) commands: mpsc::Sender<Command>,
}

impl Dispatcher {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                Some(event) = self.events.recv() => event,
            };
            match self.link.order(event) {
                Some(Order::Connected) => self.connects.send_modify(|count| *count += 1),
                Some(Order::Desired(desired)) => {
                    let _ = self.orders.send(driver::Order::Desired(desired)).await;
                }
                Some(Order::Chunk(chunk)) => self.fetcher.deliver(chunk),
                // A receipt that finds no room is made up for by the next one.
                Some(Order::Receipt(receipt)) => drop(self.receipts.try_send(receipt)),
                Some(Order::Command(command)) => {
                    if let Err(mpsc::error::TrySendError::Full(command)) = self.commands.try_send(command) {
                        tracing::warn!(id = %command.id, "too many commands at once; the cloud will ask again");
                    }
                }
                Some(Order::Disconnected) | None => {}
            }
        }
    }
}
