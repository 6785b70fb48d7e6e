//! One lane of batches of rows: each is stored and answered with a receipt, a device's one after the other.
//!
//! A broker gives one device's batches to the replicas in turn, so the batch before one may be in another's hands. A
//! batch that comes too early is therefore held for a while, without holding up those behind it. Only then is its
//! device told to send again from where the stream ends; while another replica stores rows of it, and where there is no
//! room to hold it, the device is left to its own patience, for what it repeats at once would come too early again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cloud_sync::contract::{Receipt, Telemetry};
use cloud_sync::name::DeviceId;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::Parts;
use crate::sink::SinkError;

/// Longest time for which a batch is held: another replica stores what came before it in a fraction of that, if it has
/// it at all.
const HOLD: Duration = Duration::from_secs(2);

/// Between two looks whether what came before has been stored: a small part of a round trip with receipts.
const LOOK: Duration = Duration::from_millis(25);

/// Batches that a lane may hold: 64 of at most 128 KiB on 4 lanes bound the memory to 32 MiB. A device has four on
/// their way.
const HELD: usize = 64;

/// A batch that came too early.
struct Held {
    device: DeviceId,
    telemetry: Arc<Telemetry>,
    until: Instant,
}

/// Stores what comes until the queue is closed. What is held then is not stored: its device sends it again.
pub(super) async fn store(parts: Parts, mut queue: mpsc::Receiver<(DeviceId, Telemetry)>) {
    // Where there are no other replicas, what is missing is lost, and the device is better told at once.
    let hold = if parts.store.is_shared() { HOLD } else { Duration::ZERO };
    let mut held: VecDeque<Held> = VecDeque::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            next = queue.recv() => {
                let Some((device, telemetry)) = next else { return };
                let batch = Held { device, telemetry: Arc::new(telemetry), until: Instant::now() + hold };
                let device = batch.device.clone();
                match take(&parts, batch, held.len() < HELD).await {
                    Some(early) => held.push_back(early),
                    // What it was waiting for may be what was just stored.
                    None => again(&parts, &mut held, |batch| batch.device == device).await,
                }
            }
            _ = look.tick(), if !held.is_empty() => again(&parts, &mut held, |_| true).await,
        }
    }
}

/// Tries once more to store those of what is held that are chosen, in the order in which they came.
async fn again(parts: &Parts, held: &mut VecDeque<Held>, is_chosen: impl Fn(&Held) -> bool) {
    for _ in 0..held.len() {
        let Some(batch) = held.pop_front() else { return };
        let batch = if is_chosen(&batch) { take(parts, batch, true).await } else { Some(batch) };
        held.extend(batch);
    }
}

/// Stores a batch and sends its receipt; gives it back if it is to be held.
async fn take(parts: &Parts, batch: Held, may_hold: bool) -> Option<Held> {
    let Held { device, telemetry, until } = &batch;
    let receipt = match parts.sink.accept(device, telemetry.clone()).await {
        Ok(receipt) => receipt,
        Err(SinkError::Hole { .. } | SinkError::Overtaken | SinkError::Underway)
            if may_hold && Instant::now() < *until =>
        {
            return Some(batch);
        }
        Err(error @ (SinkError::Underway | SinkError::Overtaken)) => {
            parts.sink.counters().early.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%device, %error, "a batch was left to be sent again");
            return None;
        }
        Err(error @ SinkError::Hole { .. }) if !may_hold && parts.store.is_shared() => {
            parts.sink.counters().early.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%device, %error, "a batch found no room to wait and was left to be sent again");
            return None;
        }
        // The receipt says from where the device has to send again.
        Err(SinkError::Hole { before, .. }) => {
            parts.sink.counters().early.fetch_add(1, Ordering::Relaxed);
            Receipt { stream: telemetry.stream.clone(), durable_through: before, again: false }
        }
        Err(error) => {
            parts.counters.failed.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%device, %error, "a batch of rows could not be stored");
            return None;
        }
    };
    if let Err(error) = parts.link.publish(device, &receipt).await {
        tracing::debug!(%device, %error, "a receipt was not sent; the device sends the batch again");
    }
    None
}
