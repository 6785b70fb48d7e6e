//! From the spool to edgeHub, for a module that has no registry: batches out as JSON, and edgeHub's acknowledgement as
//! the only receipt that there is.
//!
//! That acknowledgement says that edgeHub has stored a batch, not that any cloud has it: from there on edgeHub's time to
//! live and limits hold.

use std::collections::VecDeque;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{IN_FLIGHT, PATIENCE, Uploader};
use crate::module::outbox::{Item, Outbox, Then};
use crate::module::telemetry::{self, Batch};
use crate::module::topic::Topics;
use crate::spool::SpoolError;

/// Rows and their bytes that are looked at for one message: as JSON they are larger.
const ROWS: usize = 1024;
/// See [`ROWS`].
const ROWS_BYTES: usize = 192 * 1024;

/// The way out to edgeHub.
#[derive(Debug, Clone)]
pub struct EdgeHub {
    /// Takes the batches.
    pub outbox: Outbox,
    /// The module's topics.
    pub topics: Topics,
}

/// What is on its way.
#[derive(Default)]
pub(super) struct ToHub {
    /// The last row that was put out; 0 for none.
    sent: u64,
    /// The last row of each batch that edgeHub does not have yet, oldest first, and the word that it has.
    batches: VecDeque<(u64, oneshot::Receiver<()>)>,
}

impl Uploader {
    /// Puts out what may be put out, then waits for something to happen.
    pub(super) async fn turn_to_hub(
        &mut self,
        hub: &EdgeHub,
        flight: &mut ToHub,
        stop: &CancellationToken,
    ) -> Result<(), SpoolError> {
        while flight.batches.len() < IN_FLIGHT && self.put_out(hub, flight, stop).await? {}
        self.publish_ledger().await?;
        tokio::select! {
            () = stop.cancelled() => {}
            stored = flight.oldest() => self.stored(stored, flight).await?,
            // A registry may have come.
            Ok(()) = self.connects.changed() => {}
            Ok(()) = self.flush.changed() => {}
            Ok(()) = self.appended.changed() => {
                // Rows that come within the interval share a batch.
                tokio::select! {
                    () = tokio::time::sleep(self.interval) => {}
                    Ok(()) = self.flush.changed() => {}
                    stored = flight.oldest() => self.stored(stored, flight).await?,
                    Ok(()) = self.connects.changed() => {}
                    () = stop.cancelled() => {}
                }
            }
            () = tokio::time::sleep(PATIENCE.1) => {}
        }
        Ok(())
    }

    /// Puts the next batch out; false where there is none.
    async fn put_out(
        &self,
        hub: &EdgeHub,
        flight: &mut ToHub,
        stop: &CancellationToken,
    ) -> Result<bool, SpoolError> {
        let (after, topics) = (flight.sent, hub.topics.clone());
        let batch = self
            .with_spool(move |spool| {
                let rows = spool.peek(after, ROWS, ROWS_BYTES)?;
                Ok(telemetry::batch(&topics, spool.stream(), &rows))
            })
            .await?;
        let Batch { topic, body, last } = match batch {
            Ok(Some(batch)) => batch,
            Ok(None) => return Ok(false),
            Err(error) => {
                tracing::error!(%error, "rows can't be put out");
                return Ok(false);
            }
        };
        let (stored, waiting) = oneshot::channel();
        let put = hub.outbox.put(Item { topic, body, then: Then::Tell(stored) });
        if stop.run_until_cancelled(put).await != Some(true) {
            return Ok(false);
        }
        flight.sent = last;
        flight.batches.push_back((last, waiting));
        Ok(true)
    }

    /// The oldest batch is stored, or will not be.
    async fn stored(&self, stored: Option<u64>, flight: &mut ToHub) -> Result<(), SpoolError> {
        match stored {
            Some(last) => {
                let taken = self.with_spool(move |spool| spool.receipt(last)).await;
                // What could not be noted goes out again.
                taken.map(drop).inspect_err(|_| *flight = ToHub::default())
            }
            None => {
                *flight = ToHub::default();
                Ok(())
            }
        }
    }
}

impl ToHub {
    /// Waits until edgeHub has the oldest batch: its last row. `None` where it will not have it. Never ends where there
    /// is none.
    async fn oldest(&mut self) -> Option<u64> {
        let Some((last, waiting)) = self.batches.front_mut() else { return std::future::pending().await };
        let (last, stored) = (*last, waiting.await.is_ok());
        self.batches.pop_front();
        stored.then_some(last)
    }
}
