//! From a score to rows in the spool, without ever slowing the score.
//!
//! Invariants:
//! - [`Capture::offer`] never waits: what does not fit into the queue is shed and counted.
//! - Under pressure capture backs off before scoring does: what it would have taken is shed and counted.
//! - The queue is bounded in requests and in bytes, so large tensors can't fill the memory.
//! - A row is encoded once; the same bytes are stored, sent and decoded by the cloud.
//! - One thread appends; many rows share one durable write.

mod columns;

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cloud_sync::contract::{Clock, Collect};
use cloud_sync::name::ModelName;
use cloud_sync::rows::Row;
use engine::Signature;
use tokio::sync::{oneshot, watch};

use crate::clock::{EARLIEST_MS, RunClock};
use crate::pressure::Level;
use crate::scorer::{Live, Scored, rows};
use crate::spool::{DropReason, Spool};

/// Requests that may wait for the disk: seconds of a busy sensor, while an SD card erases a block.
const QUEUE: usize = 4096;

/// Of the requests that would be captured, one in this many is while the board is strained: enough to see what the
/// model sees, and little enough to count as rest.
const STRAINED_SHARE: u32 = 4;

/// Rows that share one durable write, and their bytes: what flash and file system add to it is no more than a tenth then.
const GROUP_ROWS: usize = 512;
/// See [`GROUP_ROWS`].
const GROUP_BYTES: usize = 256 * 1024;

/// While rows wait for others to share their write, the queue is looked at so often: a thread that is woken for each row takes
/// the core from who scores the next. What comes meanwhile fits into the queue many times.
const BREATH: Duration = Duration::from_millis(10);

/// How rows may wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The most bytes of tensors that do.
    pub bytes: usize,
    /// The longest time that a row does, for others to share its write.
    pub time: Duration,
}

/// The way into the spool. Cheap to clone.
#[derive(Clone)]
pub struct Capture {
    shared: Arc<Shared>,
    queue: SyncSender<Message>,
}

/// The thread's half; see [`Writer::run`].
pub struct Writer {
    shared: Arc<Shared>,
    queue: Receiver<Message>,
    longest: Duration,
    spool: Arc<Mutex<Spool>>,
    appended: watch::Sender<u64>,
}

struct Shared {
    clock: RunClock,
    collect: RwLock<Collect>,
    share: AtomicU32,
    queue_bytes: usize,
    queued_bytes: AtomicUsize,
    shed_queue: AtomicU64,
    /// A [`Level`].
    pressure: AtomicU8,
    strained: AtomicU32,
    shed_pressure: AtomicU64,
}

impl Shared {
    fn new(clock: RunClock, queue_bytes: usize) -> Self {
        Self {
            clock,
            collect: RwLock::new(Collect { enabled: false, rate: 0.0 }),
            share: AtomicU32::new(0),
            queue_bytes,
            queued_bytes: AtomicUsize::new(0),
            shed_queue: AtomicU64::new(0),
            pressure: AtomicU8::new(Level::Calm as u8),
            strained: AtomicU32::new(0),
            shed_pressure: AtomicU64::new(0),
        }
    }
}

enum Message {
    /// A request to keep.
    Keep(Box<Item>),
    /// Tell the spool of what was shed.
    Count,
    /// Answer once everything before this is in the spool.
    Settle(oneshot::Sender<u64>),
}

struct Item {
    model: ModelName,
    version: u64,
    signature: Arc<Signature>,
    scored: Scored,
    request_id: String,
    correlation_id: String,
    at: Clock,
    bytes: usize,
}

/// Makes the way into `spool`. The receiver sees a change whenever rows were appended, shed or refused by the disk; its
/// value is the sequence number after the last row.
pub fn open(
    spool: Arc<Mutex<Spool>>,
    clock: RunClock,
    waiting: Waiting,
) -> (Capture, Writer, watch::Receiver<u64>) {
    let shared = Arc::new(Shared::new(clock, waiting.bytes));
    let (sender, queue) = sync_channel(QUEUE);
    // Rows may be there that an earlier process has left.
    let next_sequence = spool.lock().unwrap_or_else(PoisonError::into_inner).next_sequence();
    let (appended, watcher) = watch::channel(next_sequence);
    let capture = Capture { shared: shared.clone(), queue: sender };
    (capture, Writer { shared, queue, longest: waiting.time, spool, appended }, watcher)
}

impl Capture {
    /// Sets what is collected where a model has no word of its own. Before the first call, nothing is.
    pub fn set_collect(&self, collect: Collect) {
        *self.shared.collect.write().unwrap_or_else(PoisonError::into_inner) = collect;
    }

    /// Sets how much is taken of what is to be collected: all, a quarter or nothing. To be called now and then, for it
    /// also lets the ledger know what was shed meanwhile.
    pub fn set_pressure(&self, level: Level) {
        self.shared.pressure.store(level as u8, Ordering::Relaxed);
        if self.shared.shed_pressure.load(Ordering::Relaxed) > 0 {
            // A full queue has messages in it that do the same.
            let _ = self.queue.try_send(Message::Count);
        }
    }

    /// Offers a scored request. Whether its rows are taken depends on what is to be collected, and on room.
    pub fn offer(&self, live: &Live, scored: &Scored, request_id: &str, correlation_id: &str) {
        let general = *self.shared.collect.read().unwrap_or_else(PoisonError::into_inner);
        if !self.is_chosen(live.facts.settings.collect.unwrap_or(general)) {
            return;
        }
        if !self.is_bearable() {
            let lost = rows(&live.facts.signature, &scored.inputs);
            self.shared.shed_pressure.fetch_add(lost, Ordering::Relaxed);
            return;
        }
        let bytes = columns::bytes(&scored.inputs) + columns::bytes(&scored.outputs);
        let queued = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let item = Item {
            model: live.facts.name.clone(),
            version: live.facts.version,
            signature: live.facts.signature.clone(),
            scored: scored.clone(),
            request_id: request_id.to_owned(),
            correlation_id: correlation_id.to_owned(),
            at: self.shared.clock.now(),
            bytes,
        };
        let lost = rows(&item.signature, &scored.inputs);
        if queued.saturating_add(bytes) > self.shared.queue_bytes
            || self.queue.try_send(Message::Keep(Box::new(item))).is_err()
        {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.shed_queue.fetch_add(lost, Ordering::Relaxed);
        }
    }

    /// Returns once everything that was offered before is in the spool or counted as shed; gives the number of
    /// rows that have been captured by then.
    pub async fn settle(&self) -> u64 {
        let (answer, done) = oneshot::channel();
        let queue = self.queue.clone();
        // A full queue is waited for off the network's threads.
        let sent = tokio::task::spawn_blocking(move || queue.send(Message::Settle(answer)).is_ok()).await;
        if matches!(sent, Ok(true)) { done.await.unwrap_or(0) } else { 0 }
    }

    /// A way that leads nowhere, for an agent without a cloud: nothing is captured.
    pub fn nowhere() -> Self {
        let (queue, _) = sync_channel(0);
        Self { shared: Arc::new(Shared::new(RunClock::start(""), 0)), queue }
    }

    /// Whether the board can bear to capture one more.
    fn is_bearable(&self) -> bool {
        let level = self.shared.pressure.load(Ordering::Relaxed);
        level == Level::Calm as u8
            || level == Level::Strained as u8
                && self.shared.strained.fetch_add(1, Ordering::Relaxed).is_multiple_of(STRAINED_SHARE)
    }

    /// Chooses the share of requests that is collected, evenly spread.
    fn is_chosen(&self, collect: Collect) -> bool {
        if !collect.enabled || collect.rate <= 0.0 {
            return false;
        }
        if collect.rate >= 1.0 {
            return true;
        }
        // A turn of the counter is one captured request; the cast saturates.
        let step = (collect.rate * f64::from(u32::MAX)) as u32;
        let before = self.shared.share.fetch_add(step, Ordering::Relaxed);
        before.checked_add(step).is_none()
    }
}

impl Writer {
    /// Appends until every [`Capture`] is gone and the queue is empty. Blocking; runs on a thread of its own.
    pub fn run(self) {
        let mut group = Group::default();
        while let Ok(message) = self.queue.recv() {
            self.take(message, &mut group);
            let until = Instant::now() + self.longest;
            while !group.is_full() && group.settled.is_empty() {
                match self.queue.try_recv() {
                    Ok(message) => self.take(message, &mut group),
                    Err(TryRecvError::Disconnected) => break,
                    Err(TryRecvError::Empty) if Instant::now() >= until => break,
                    Err(TryRecvError::Empty) => {
                        std::thread::sleep(BREATH.min(until.saturating_duration_since(Instant::now())));
                    }
                }
            }
            self.append(std::mem::take(&mut group));
        }
        self.append(group);
    }

    fn take(&self, message: Message, group: &mut Group) {
        match message {
            Message::Keep(item) => self.encode(*item, group),
            Message::Count => {}
            Message::Settle(answer) => group.settled.push(answer),
        }
    }

    fn encode(&self, item: Item, group: &mut Group) {
        self.shared.queued_bytes.fetch_sub(item.bytes, Ordering::Relaxed);
        let count = rows(&item.signature, &item.scored.inputs);
        let batched = item.signature.batch_dimension();
        for index in 0..count {
            let row = Row {
                model: item.model.clone(),
                version: item.version,
                correlation_id: match count {
                    1 => item.correlation_id.clone(),
                    _ => format!("{}-{index}", item.correlation_id),
                },
                request_id: item.request_id.clone(),
                boot_id: item.at.boot_id.clone(),
                monotonic_ns: item.at.monotonic_ns,
                wall_ms: item.at.wall_ms,
                wall_sure: item.at.wall_ms >= EARLIEST_MS,
                inputs: columns::of(&item.scored.inputs, batched.then_some(index)),
                outputs: columns::of(&item.scored.outputs, batched.then_some(index)),
            };
            // A request can hold millions of rows: they are stored as they are made.
            if group.is_full() {
                self.append(std::mem::take(group));
            }
            match row.encode() {
                Ok(bytes) => {
                    group.bytes += bytes.len();
                    group.rows.push(bytes);
                }
                Err(error) => {
                    tracing::debug!(model = %item.model, %error, "a row is not captured");
                    group.too_large += 1;
                }
            }
        }
    }

    fn append(&self, group: Group) {
        let mut spool = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
        let shed = [
            (DropReason::RowTooLarge, group.too_large),
            (DropReason::QueueFull, self.shared.shed_queue.swap(0, Ordering::Relaxed)),
            (DropReason::Pressure, self.shared.shed_pressure.swap(0, Ordering::Relaxed)),
        ];
        for (reason, rows) in shed {
            spool.shed(reason, rows);
        }
        if !group.rows.is_empty() || shed.iter().any(|(_, rows)| *rows > 0) {
            // Counted by the spool; scoring goes on.
            if let Err(error) = spool.append(&group.rows) {
                tracing::warn!(%error, "captured rows were not stored");
            }
            // Of those that were refused some may have been stored.
            self.appended.send_replace(spool.next_sequence());
        }
        for answer in group.settled {
            let _ = answer.send(spool.ledger().captured);
        }
    }
}

/// What one durable write takes.
#[derive(Default)]
struct Group {
    rows: Vec<Vec<u8>>,
    bytes: usize,
    too_large: u64,
    settled: Vec<oneshot::Sender<u64>>,
}

impl Group {
    fn is_full(&self) -> bool {
        self.rows.len() >= GROUP_ROWS || self.bytes >= GROUP_BYTES
    }
}
