//! From the spool to the cloud: batches out, receipts in.
//!
//! Invariants:
//! - A row leaves the spool only on the cloud's receipt; a broker's word that it has a message is worth nothing, but
//!   where there is to be no cloud and edgeHub's word is all that there is: see [`edge_hub`].
//! - After a reconnect, when the registry has come back, or when a receipt does not come, everything without a receipt
//!   is sent again; the cloud keeps each row once, by its stream and sequence number.
//! - Each batch names the row that was sent before it, so the cloud notices a batch that was lost; its receipt
//!   says again how far it has come, and what follows is sent again at once.
//! - A receipt for rows that were never sent means that the cloud has other rows under this stream's numbers: all
//!   that is held goes up under a new stream.
//! - At most [`IN_FLIGHT`] batches are on their way, each within one message, and no larger than the link has shown to
//!   bear: one that can't pass before the link is taken for dead would be sent again for ever.

pub mod edge_hub;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cloud_sync::contract::{Receipt, Telemetry};
use cloud_sync::limits::{ENVELOPE_BYTES, MAX_BATCH_ROWS, MAX_MESSAGE_BYTES};
use cloud_sync::rows;
use serde_bytes::ByteBuf;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use edge_hub::{EdgeHub, ToHub};

use crate::clock::RunClock;
use crate::link::{Link, Uplink};
use crate::spool::{Ledger, Spool, SpoolError};

/// Batches on their way: enough to fill a long round trip, little enough to send again on a bad link.
const IN_FLIGHT: usize = 4;

/// Bytes of rows in a batch, before compression. With five bytes for each row's length the batch fits into a
/// message even where compression gains nothing.
const BATCH_BYTES: usize = MAX_MESSAGE_BYTES - ENVELOPE_BYTES - 24 * 1024;

/// The least that batches shrink to: 16 of a sensor's rows or more, and four of them are over in 16 s at 1 kB/s.
const LEAST_BATCH_BYTES: usize = 4 * 1024;

/// How long a receipt may take at first, and at most: a busy cloud is not asked twice as often as it can answer.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(320));

/// How long receipts without news may be answers to what was sent before the last repetition.
const ECHO: Duration = Duration::from_secs(2);

/// Pause after the disk refused to be read.
const DISK_RETRY: Duration = Duration::from_secs(10);

/// Pause after a batch that could not be sent though there is a link: its queue is full, or memory is short.
const SEND_RETRY: Duration = Duration::from_secs(1);

/// Receipts that may wait; they are tiny, and a lost one is made up for by the next.
pub const RECEIPTS: usize = 64;

/// The one task that empties the spool.
pub struct Uploader {
    /// The link to the cloud.
    pub link: Link,
    /// The rows.
    pub spool: Arc<Mutex<Spool>>,
    /// This run's clocks.
    pub clock: RunClock,
    /// Longest wait of a row for others to share its batch.
    pub interval: Duration,
    /// The sequence number after the last row; changes when rows are appended.
    pub appended: watch::Receiver<u64>,
    /// Changes when the link comes up; the value counts the connects.
    pub connects: watch::Receiver<u64>,
    /// Changes when someone wants the rows gone at once.
    pub flush: watch::Receiver<u64>,
    /// What the cloud has confirmed.
    pub receipts: mpsc::Receiver<Receipt>,
    /// Where the ledger is made known.
    pub ledger: watch::Sender<cloud_sync::contract::Ledger>,
    /// Which registry there is to be.
    pub uplink: watch::Receiver<Uplink>,
    /// Where rows go while there is to be none, in a module of IoT Edge.
    pub hub: Option<EdgeHub>,
}

/// What is on its way.
struct Flight {
    /// The last row that was sent; 0 for none.
    sent: u64,
    /// The last row that has a receipt, as far as this run of sending knows.
    confirmed: u64,
    /// The last row of each batch without a receipt, oldest first.
    batches: VecDeque<u64>,
    /// When the oldest of them was sent, or progress was made.
    since: Instant,
    /// When rows were last sent again.
    resent: Option<Instant>,
    patience: Duration,
    /// Bytes of rows in a batch, before compression.
    batch_bytes: usize,
    /// When rows that do not fill a batch go, too.
    due: Due,
    /// When a registry last asked for all of it again: each time costs as much as all that is on its way.
    forgotten: Option<Instant>,
}

/// When something is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Never,
    At(Instant),
    Now,
}

impl Uploader {
    /// Uploads until `stop`. A disk that fails is tried again: scoring must go on meanwhile.
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut flight, mut to_hub) = (Flight::default(), ToHub::default());
        while !stop.is_cancelled() {
            let hub = self.hub.clone().filter(|_| *self.uplink.borrow_and_update() == Uplink::None);
            // What was on its way to the one is not known to the other.
            let turn = match hub {
                Some(hub) => {
                    flight = Flight::default();
                    self.turn_to_hub(&hub, &mut to_hub, &stop).await
                }
                None => {
                    to_hub = ToHub::default();
                    self.turn(&mut flight, &stop).await
                }
            };
            if let Err(error) = turn {
                tracing::error!(%error, retry_in = ?DISK_RETRY, "the spool can't be read");
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(DISK_RETRY) => {}
                }
            }
        }
    }

    /// Sends what may be sent, then waits for something to happen.
    async fn turn(&mut self, flight: &mut Flight, stop: &CancellationToken) -> Result<(), SpoolError> {
        while self.may_send(flight) && self.send(flight).await? {}
        self.publish_ledger().await?;
        let rest = flight.due.rest();
        tokio::select! {
            () = stop.cancelled() => {}
            Some(receipt) = self.receipts.recv() => self.take(receipt, flight).await?,
            Ok(()) = self.connects.changed() => flight.forget(),
            Ok(()) = self.flush.changed() => flight.due = Due::Now,
            // Those that come within the interval share a batch, unless they fill one before.
            Ok(()) = self.appended.changed() => {
                flight.due.within(self.interval);
                self.publish_ledger().await?;
            }
            () = tokio::time::sleep(rest.unwrap_or_default()), if rest.is_some() && self.may_send(flight) => {
                flight.due = Due::Now;
            }
            () = tokio::time::sleep(flight.remaining()) => {
                if flight.is_overdue() {
                    tracing::warn!("no receipt came; sending again");
                    flight.again(flight.patience.saturating_mul(2).min(PATIENCE.1));
                }
            }
        }
        Ok(())
    }

    fn may_send(&self, flight: &Flight) -> bool {
        self.link.is_online() && flight.batches.len() < IN_FLIGHT
    }

    /// Sends the next batch; false where there is none yet, or no link.
    async fn send(&self, flight: &mut Flight) -> Result<bool, SpoolError> {
        let (after, most) = (flight.sent, flight.batch_bytes);
        let (stream, mut rows) = self
            .with_spool(move |spool| {
                let rows = spool.peek(after, MAX_BATCH_ROWS, most)?;
                Ok((spool.stream().to_owned(), rows))
            })
            .await?;
        let Some(first_sequence) = rows.first().map(|(sequence, _)| *sequence) else {
            flight.due = Due::Never;
            return Ok(false);
        };
        // A batch has no gaps: what follows one goes into the next batch.
        let together =
            rows.iter().zip(first_sequence..).take_while(|((sequence, _), next)| sequence == next).count();
        rows.truncate(together);
        let last = first_sequence + together.saturating_sub(1) as u64;
        // What would fill a batch need not wait, and shows by what stands behind it.
        let is_full = last + 1 < *self.appended.borrow();
        if !is_full && flight.due != Due::Now {
            return Ok(false);
        }
        let bytes: Vec<Vec<u8>> = rows.into_iter().map(|(_, bytes)| bytes).collect();
        let packed = tokio::task::spawn_blocking(move || rows::pack(&bytes)).await;
        let (codec, packed) = match packed {
            Ok(Ok(packed)) => packed,
            Ok(Err(error)) => {
                tracing::error!(%error, first_sequence, "a batch can't be packed");
                flight.due = Due::soon();
                return Ok(false);
            }
            Err(error) => {
                tracing::error!(%error, "packing a batch failed");
                flight.due = Due::soon();
                return Ok(false);
            }
        };
        let ledger = self.ledger.borrow().clone();
        let (rows, clock) = (ByteBuf::from(packed), Some(self.clock.now()));
        let batch = Telemetry { stream, first_sequence, after, codec, rows, ledger, clock };
        match self.link.telemetry(&batch).await {
            Ok(()) => {
                flight.add(last);
                if !is_full {
                    flight.due = Due::Never;
                }
                Ok(true)
            }
            Err(error) => {
                tracing::debug!(%error, first_sequence, "a batch was not sent");
                flight.due = Due::soon();
                Ok(false)
            }
        }
    }

    async fn take(&self, receipt: Receipt, flight: &mut Flight) -> Result<(), SpoolError> {
        if receipt.again && flight.forgotten.is_none_or(|forgotten| forgotten.elapsed() >= ECHO) {
            // What it has of them the next receipts say, and this one where it is for this stream.
            flight.forget();
            flight.forgotten = Some(Instant::now());
        }
        let through = receipt.durable_through;
        let result = self
            .with_spool(move |spool| {
                if spool.stream() == receipt.stream { spool.receipt(through).map(Some) } else { Ok(None) }
            })
            .await;
        match result {
            Ok(Some(believed)) => {
                tracing::debug!(through, believed, "receipt");
                flight.confirmed(believed);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error @ SpoolError::ReceiptAhead { .. }) => {
                tracing::error!(%error, "the cloud has other rows under this stream; beginning a new one");
                self.with_spool(Spool::begin_stream).await?;
                *flight = Flight::default();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn publish_ledger(&self) -> Result<(), SpoolError> {
        let (ledger, losses) = self.with_spool(|spool| Ok((spool.ledger(), spool.take_losses()))).await?;
        for loss in losses {
            tracing::error!(part = %loss.name, rows = loss.rows, why = %loss.why, "a part of the spool is damaged");
        }
        let ledger = on_the_wire(ledger);
        self.ledger.send_if_modified(|known| {
            let changed = *known != ledger;
            *known = ledger;
            changed
        });
        Ok(())
    }

    async fn with_spool<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Spool) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        let spool = self.spool.clone();
        let work = move || work(&mut spool.lock().unwrap_or_else(PoisonError::into_inner));
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// The spool's ledger in the words of the contract.
pub fn on_the_wire(ledger: Ledger) -> cloud_sync::contract::Ledger {
    let dropped = ledger.dropped.iter().map(|(reason, rows)| (reason.to_string(), *rows)).collect();
    cloud_sync::contract::Ledger {
        captured: ledger.captured,
        uploaded: ledger.uploaded,
        held: ledger.held,
        dropped,
        lost: ledger.lost,
    }
}

impl Default for Flight {
    fn default() -> Self {
        Self {
            sent: 0,
            confirmed: 0,
            batches: VecDeque::new(),
            since: Instant::now(),
            resent: None,
            patience: PATIENCE.0,
            batch_bytes: BATCH_BYTES,
            // What is held goes at once.
            due: Due::Now,
            forgotten: None,
        }
    }
}

impl Due {
    /// A little later, after a failure.
    fn soon() -> Self {
        Self::At(Instant::now() + SEND_RETRY)
    }

    /// After `interval` at the latest.
    fn within(&mut self, interval: Duration) {
        if *self == Self::Never {
            *self = Self::At(Instant::now() + interval);
        }
    }

    /// How long until then; `None` where there is nothing to wait for.
    fn rest(self) -> Option<Duration> {
        match self {
            Self::At(time) => Some(time.saturating_duration_since(Instant::now())),
            Self::Never | Self::Now => None,
        }
    }
}

impl Flight {
    /// A new connection, or a registry that has just come, knows nothing of what was on its way. The link may be no
    /// better than it was.
    fn forget(&mut self) {
        *self = Self { batch_bytes: self.smaller(), forgotten: self.forgotten, ..Self::default() };
    }

    fn add(&mut self, last: u64) {
        if self.batches.is_empty() {
            self.since = Instant::now();
        }
        self.sent = last;
        self.batches.push_back(last);
    }

    /// Takes a receipt. One that brings nothing new while batches are on their way says that one of them was
    /// lost on its way; those behind it are answered alike, so for a while such receipts are echoes.
    fn confirmed(&mut self, through: u64) {
        let is_news = through > self.confirmed;
        self.confirmed = self.confirmed.max(through);
        self.batches.retain(|last| *last > through);
        self.sent = self.sent.max(through);
        if is_news {
            self.since = Instant::now();
            self.patience = PATIENCE.0;
            self.batch_bytes = self.batch_bytes.saturating_mul(2).min(BATCH_BYTES);
        } else if !self.batches.is_empty() && self.resent.is_none_or(|resent| resent.elapsed() >= ECHO) {
            tracing::debug!(through, "a batch was lost; sending again");
            self.again(self.patience);
        }
    }

    fn remaining(&self) -> Duration {
        if self.batches.is_empty() { PATIENCE.1 } else { self.patience.saturating_sub(self.since.elapsed()) }
    }

    fn is_overdue(&self) -> bool {
        !self.batches.is_empty() && self.since.elapsed() >= self.patience
    }

    /// Everything without a receipt goes again.
    fn again(&mut self, patience: Duration) {
        let (confirmed, batch_bytes) = (self.confirmed, self.smaller());
        let (resent, forgotten) = (Some(Instant::now()), self.forgotten);
        *self = Self { patience, confirmed, batch_bytes, resent, forgotten, ..Self::default() };
    }

    /// What batches are to have after those that are on their way were lost, if any were.
    fn smaller(&self) -> usize {
        match self.batches.is_empty() {
            true => self.batch_bytes,
            false => (self.batch_bytes / 4).max(LEAST_BATCH_BYTES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_row_of_a_batch_says_when_it_is_due() {
        let mut due = Due::Never;
        assert_eq!(due.rest(), None);
        due.within(Duration::from_secs(30));
        let first = due;
        due.within(Duration::from_secs(60));
        assert_eq!(due, first);
        assert!(due.rest().unwrap() <= Duration::from_secs(30));
        let mut due = Due::Now;
        due.within(Duration::from_secs(30));
        assert_eq!(due, Due::Now, "and what is urgent stays so");
    }

    #[test]
    fn batches_shrink_on_a_link_that_loses_them_and_grow_on_one_that_does_not() {
        let mut flight = Flight::default();
        flight.forget();
        assert_eq!(flight.batch_bytes, BATCH_BYTES, "nothing was on its way");
        for _ in 0..10 {
            flight.add(5);
            flight.forget();
        }
        assert_eq!(flight.batch_bytes, LEAST_BATCH_BYTES);
        flight.add(9);
        flight.again(PATIENCE.1);
        assert_eq!(flight.batch_bytes, LEAST_BATCH_BYTES);
        for row in 10..20 {
            flight.add(row);
            flight.confirmed(row);
        }
        assert_eq!(flight.batch_bytes, BATCH_BYTES);
    }
}
