//! The registry's end of the wire: takes every message of every device, and sees that each is answered.
//!
//! Invariants:
//! - The loop that takes messages never waits for a disk, a database or the network: each kind of message has a queue
//!   with a bound, and what does not fit is dropped and counted. The device asks or sends again.
//! - What a device says of itself is kept in the order in which it was said.
//! - One stream's batches are stored one after the other; different devices' at the same time.
//! - Each replica hears what devices say of themselves; all other work is shared, and none of it needs a particular
//!   replica. What one that died had in hand is asked for or sent again.

mod batches;
mod pieces;
mod returns;
mod words;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cloud_sync::contract::{self, Fetch, Message, Presence, Reply, Reported, Telemetry};
use cloud_sync::name::DeviceId;
use cloud_sync::session::{Event, Incoming};
use cloud_sync::topic::Kind;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::commands::Commands;
use crate::deployments::Deployments;
use crate::link::{Link, LinkError};
use crate::objects::Objects;
use crate::sharing::Sharing;
use crate::sink::Sink;
use crate::store::{Note, Store};
use pieces::Pieces;
use words::Words;

/// Lanes on which batches are stored: a few devices at once keep the disk busy, and each lane may hold a decoded batch.
const LANES: usize = 4;

/// Batches that may wait on a lane: 32 of at most 128 KiB on 4 lanes bound the memory to 16 MiB.
const LANE_QUEUE: usize = 32;

/// Pause before words that a database did not take are given to it again.
const NOTE_AGAIN: Duration = Duration::from_secs(1);

/// Requests for pieces that may wait: a request is at most 16 KiB.
const FETCH_QUEUE: usize = 256;

/// Requests for pieces that are answered at once, so that a slow disk holds up one device and not all.
const FETCHERS: usize = 8;

/// Pieces of one request that are read together: 1 MiB at most.
const READ_TOGETHER: usize = 16;

/// Answers to commands that may wait.
const REPLY_QUEUE: usize = 64;

/// What a worker works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The way to the devices.
    pub link: Link,
    /// The records.
    pub store: Store,
    /// The bytes.
    pub objects: Objects,
    /// Where captured rows go.
    pub sink: Arc<Sink>,
    /// Who shall run what.
    pub deployments: Arc<Deployments>,
    /// The commands that are under way.
    pub commands: Arc<Commands>,
    /// What has come in.
    pub counters: Arc<Counters>,
}

/// What has come in.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages that are none of the contract.
    pub malformed: AtomicU64,
    /// Messages that were dropped because their queue was full.
    pub shed: AtomicU64,
    /// Messages that could not be kept or answered; the log says why.
    pub failed: AtomicU64,
    /// Pieces that were sent.
    pub pieces: AtomicU64,
    /// Bytes of those.
    pub piece_bytes: AtomicU64,
}

/// Takes the session's events until `stop`, then finishes what it holds.
pub async fn run(
    parts: Parts,
    mut events: mpsc::Receiver<Event>,
    mut sharing: Sharing,
    stop: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    let queues = Queues::spawn(&parts, &mut tasks);
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = sharing.doubt() => {
                sharing.give_up();
                // Only now is it heard what they send.
                queues.connects.send_modify(|count| *count += 1);
                continue;
            }
            () = stop.cancelled() => None,
        };
        match event {
            Some(Event::Connected) => {
                sharing.begin();
                parts.deployments.publish_all();
                queues.connects.send_modify(|count| *count += 1);
            }
            Some(Event::Disconnected(_)) => {}
            Some(Event::Message(message)) if sharing.took(&message.topic) => {}
            Some(Event::Message(message)) => queues.take(&parts, message),
            None => break,
        }
        // Those that have ended. One that ended in a panic would leave its queue without a reader, so all end with it.
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a task of the worker failed");
                return;
            }
        }
    }
    queues.words.close();
    drop(queues);
    while tasks.join_next().await.is_some() {}
}

struct Queues {
    words: Arc<Words>,
    fetches: mpsc::Sender<(DeviceId, Fetch)>,
    lanes: Vec<mpsc::Sender<(DeviceId, Telemetry)>>,
    replies: mpsc::Sender<(DeviceId, Reply)>,
    connects: watch::Sender<u64>,
}

impl Queues {
    fn spawn(parts: &Parts, tasks: &mut JoinSet<()>) -> Self {
        let words = Arc::new(Words::default());
        tasks.spawn(keep_words(parts.clone(), words.clone()));
        let (fetches, receiver) = mpsc::channel(FETCH_QUEUE);
        tasks.spawn(answer_fetches(parts.clone(), receiver));
        let (replies, receiver) = mpsc::channel(REPLY_QUEUE);
        tasks.spawn(keep_replies(parts.clone(), receiver));
        let lanes = (0..LANES).map(|_| {
            let (lane, receiver) = mpsc::channel(LANE_QUEUE);
            tasks.spawn(batches::store(parts.clone(), receiver));
            lane
        });
        let lanes = lanes.collect();
        let (connects, receiver) = watch::channel(0);
        tasks.spawn(returns::tell(parts.clone(), receiver));
        Self { words, fetches, lanes, replies, connects }
    }

    /// Puts a message into its queue.
    fn take(&self, parts: &Parts, message: Incoming) {
        let Some((device, kind)) = parts.link.root().parse(&message.topic) else {
            parts.counters.malformed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        // An empty body is how a retained message is deleted.
        if message.body.is_empty() && kind.retained() {
            return;
        }
        let body = &message.body;
        let taken = match kind {
            Kind::Presence => read::<Presence>(body, &device)
                .map(|presence| self.words.put(Note::Presence(device, presence), body.len())),
            Kind::Reported => read::<Reported>(body, &device)
                .map(|reported| self.words.put(Note::Reported(device, Box::new(reported)), body.len())),
            Kind::Fetch => read::<Fetch>(body, &device).map(|fetch| send(&self.fetches, (device, fetch))),
            Kind::Telemetry => read::<Telemetry>(body, &device).map(|telemetry| {
                let mut hasher = DefaultHasher::new();
                device.hash(&mut hasher);
                let lane = hasher.finish() as usize % LANES;
                self.lanes.get(lane).is_some_and(|lane| send(lane, (device, telemetry)))
            }),
            Kind::Reply => read::<Reply>(body, &device).map(|reply| send(&self.replies, (device, reply))),
            Kind::Desired | Kind::Chunk | Kind::Receipt | Kind::Command => Some(true),
        };
        match taken {
            Some(true) => {}
            Some(false) => {
                parts.counters.shed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%kind, "a message was dropped: its queue is full");
            }
            None => {
                parts.counters.malformed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn send<T>(queue: &mpsc::Sender<T>, item: T) -> bool {
    !matches!(queue.try_send(item), Err(TrySendError::Full(_)))
}

fn read<M: Message>(body: &[u8], device: &DeviceId) -> Option<M> {
    contract::decode(body).inspect_err(|error| tracing::warn!(%device, %error, "a message was dropped")).ok()
}

async fn keep_words(parts: Parts, words: Arc<Words>) {
    while let Some(notes) = words.take().await {
        let noted = loop {
            match parts.store.note(&notes, crate::now_ms()).await {
                Ok(noted) => break noted,
                // Nobody says it again soon, so it is kept here; what does not fit beside it is counted.
                Err(error) => {
                    tracing::warn!(%error, retry_in = ?NOTE_AGAIN, "what devices report is not kept yet");
                    tokio::time::sleep(NOTE_AGAIN).await;
                }
            }
        };
        parts.counters.failed.fetch_add(noted.lost, Ordering::Relaxed);
        parts.deployments.publish_soon(noted.behind);
    }
}

async fn answer_fetches(parts: Parts, mut queue: mpsc::Receiver<(DeviceId, Fetch)>) {
    let pieces = Arc::new(Pieces::new(parts.objects.clone()));
    let mut answering = JoinSet::new();
    while let Some((device, fetch)) = queue.recv().await {
        if queue.is_closed() {
            break;
        }
        while answering.len() >= FETCHERS {
            answering.join_next().await;
        }
        let (parts, pieces) = (parts.clone(), pieces.clone());
        answering.spawn(async move {
            match answer(&parts, &pieces, &device, &fetch).await {
                // The connection is gone, and with it the device's wish: it asks again.
                Ok(()) | Err(LinkError::Send(_)) => {}
                Err(LinkError::Contract(error)) => {
                    parts.counters.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%device, %error, "pieces could not be sent");
                }
            }
        });
    }
    // Whoever is still pulling asks again.
    answering.abort_all();
}

async fn answer(parts: &Parts, pieces: &Pieces, device: &DeviceId, fetch: &Fetch) -> Result<(), LinkError> {
    for together in fetch.wants.chunks(READ_TOGETHER) {
        pieces.prepare(together).await;
        for want in together {
            let piece = match pieces.read(want).await {
                Ok(piece) => piece,
                Err(error) => {
                    parts.counters.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%device, %error, "a piece could not be read");
                    continue;
                }
            };
            let bytes = piece.bytes.len() as u64;
            parts.link.publish(device, &piece).await?;
            parts.counters.pieces.fetch_add(1, Ordering::Relaxed);
            parts.counters.piece_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }
    Ok(())
}

async fn keep_replies(parts: Parts, mut queue: mpsc::Receiver<(DeviceId, Reply)>) {
    while let Some((device, reply)) = queue.recv().await {
        if let Err(error) = parts.commands.answer(&device, &reply).await {
            parts.counters.failed.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%device, %error, "the answer to a command could not be kept");
        }
    }
}
