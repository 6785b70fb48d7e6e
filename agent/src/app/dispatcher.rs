//! From the link to the parts: who gets which order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cloud_sync::contract::{Command, Receipt};
use cloud_sync::session::Event;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::deploy::driver;
use crate::exposition::{Exposition, Kind};
use crate::fetch::Fetcher;
use crate::link::{Link, Order};
use crate::metrics::Source;

/// Hands what the cloud says to the part that it is for. Never waits for any of them but the deployments.
pub(super) struct Dispatcher {
    pub(super) link: Link,
    pub(super) orders: mpsc::Sender<driver::Order>,
    pub(super) fetcher: Fetcher,
    pub(super) receipts: mpsc::Sender<Receipt>,
    pub(super) connects: watch::Sender<u64>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) dropped: Arc<Dropped>,
}

/// Orders that found the queue of their part full.
#[derive(Default)]
pub(super) struct Dropped {
    receipts: AtomicU64,
    commands: AtomicU64,
}

impl Dropped {
    /// What writes them as metrics.
    pub(super) fn source(self: Arc<Self>) -> Source {
        Arc::new(move |exposition: &mut Exposition| {
            let help = "Orders of the cloud that found the queue of their part full.";
            let mut family = exposition.family("edgewise_orders_dropped_total", Kind::Counter, help);
            for (order, count) in [("receipt", &self.receipts), ("command", &self.commands)] {
                family.sample(&[("order", order)], count.load(Ordering::Relaxed));
            }
        })
    }
}

impl Dispatcher {
    /// Follows one session until `stop`.
    pub(super) async fn run(&self, mut events: mpsc::Receiver<Event>, stop: CancellationToken) {
        while let Some(Some(event)) = stop.run_until_cancelled(events.recv()).await {
            match self.link.order(event) {
                Some(Order::Connected) => self.connects.send_modify(|count| *count += 1),
                Some(Order::Desired(desired, origin)) => {
                    let _ = self.orders.send(driver::Order::Desired(desired, origin)).await;
                }
                Some(Order::Chunk(chunk)) => self.fetcher.deliver(chunk),
                Some(Order::Receipt(receipt)) => {
                    // It is made up for by the next one.
                    if let Err(TrySendError::Full(_)) = self.receipts.try_send(receipt) {
                        self.dropped.receipts.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Some(Order::Command(command)) => {
                    if let Err(TrySendError::Full(command)) = self.commands.try_send(command) {
                        self.dropped.commands.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(id = %command.id, "too many commands at once; the cloud will ask again");
                    }
                }
                Some(Order::Disconnected) | None => {}
            }
        }
    }
}
