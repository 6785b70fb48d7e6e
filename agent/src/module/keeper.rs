//! The one task that keeps the twin: performs what [`Twin`] decides, tells the parts what is desired of them, and reports
//! what they are.
//!
//! Invariants:
//! - What is desired survives a restart: the agent goes on as it was told before it has heard anything. So does each
//!   section as it was last without a mistake, which holds where there is one now.
//! - It is written down before any part is told, and all parts are told again at each start; so a crash between the two
//!   costs nothing.

mod meaning;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloud_sync::contract::Ledger;
use cloud_sync::limits::bounded_text;
use cloud_sync::session::{Outgoing, Sender};
use cloud_sync::topic::Qos;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::desired::{self, Mistake, Route, Wishes};
use super::merge::Object;
use super::reported::{self, Facts};
use super::topic;
use super::twin::{self, Act, Counts, Twin};
use crate::config::Config;
use crate::deploy::driver::{Order, Status, Wanted};
use crate::durable;
use crate::health::Reporter;
use crate::link::{Link, Registry, Uplink};
use crate::log::LogLevel;
use crate::pressure::Pressure;
use meaning::Configured;

/// What edgeHub says of the twin, as far as it may wait.
pub const NEWS: usize = 32;

/// Longest time between two reports while nothing but numbers changes: rows, the free disk. IoT Hub counts each.
const REPORT: Duration = Duration::from_secs(60);

/// How long the last report may take: the pause between two, and edgeHub's answer to both.
const FAREWELL: Duration = Duration::from_secs(3);

/// What edgeHub says of the twin.
#[derive(Debug)]
pub enum News {
    /// The link is up.
    Connected,
    /// The link is down.
    Disconnected,
    /// A request is answered.
    Answer {
        /// As in HTTP.
        status: u16,
        /// The request's id.
        request_id: String,
        /// The twin, after a read.
        body: Bytes,
    },
    /// What is desired has changed.
    Patch {
        /// The version after it.
        version: Option<u64>,
        /// The change.
        body: Bytes,
    },
}

/// Keeps the twin; see [`Keeper::run`].
pub struct Keeper {
    twin: Twin,
    sender: Sender,
    /// Where what is desired survives.
    path: PathBuf,
    /// Each section as it was last without a mistake.
    sound: Object,
    wishes: Wishes,
    mistakes: Vec<Mistake>,
    /// Whether what is desired is not on the disk.
    unwritten: bool,
    configured: Configured,
    log_level: LogLevel,
    /// What the agent says that it is doing.
    state: &'static str,
    routes: watch::Sender<Option<Arc<[Route]>>>,
    uplink: watch::Sender<Uplink>,
    counts: watch::Sender<Counts>,
}

/// The parts that the twin speaks of.
pub struct Parts {
    /// The deployments.
    pub orders: mpsc::Sender<Order>,
    /// What they have come to.
    pub status: watch::Receiver<Status>,
    /// Knows the device's state.
    pub reporter: Reporter,
    /// Where rows are.
    pub ledger: watch::Receiver<Ledger>,
    /// How much the machine has to bear.
    pub pressure: watch::Receiver<Pressure>,
    /// The link to the registry.
    pub link: Link,
    /// Changes when that link comes up, or leads elsewhere.
    pub connects: watch::Receiver<u64>,
    /// Why the registry that is wanted can't be spoken to.
    pub trouble: watch::Receiver<Option<String>>,
}

/// What survives.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Known {
    version: Option<u64>,
    desired: Object,
    /// Each section as it was last without a mistake.
    sound: Object,
}

impl Keeper {
    /// Reads what was desired before, and tells `uplink` of the registry in it. What can't be read is forgotten: edgeHub
    /// says it again. Blocking: reads files.
    pub fn open(
        config: &Config,
        boot_id: &str,
        sender: Sender,
        log_level: LogLevel,
        uplink: watch::Sender<Uplink>,
    ) -> Self {
        let path = config.data.join("twin");
        let known = read(&path).unwrap_or_else(|error| {
            let error = bounded_text(error.to_string());
            tracing::error!(path = %path.display(), error, "what the twin desired before can't be read");
            Known::default()
        });
        let configured = Configured {
            registry: Registry { device: config.device.clone(), cloud: config.cloud.clone() },
            log_level: config.log.level.clone(),
        };
        let mut twin = Twin::new(boot_id);
        twin.restore(known.desired, known.version);
        let (before, _) = desired::read(&known.sound, &Wishes::default());
        let (wishes, mistakes) = desired::read(twin.desired(), &before);
        uplink.send_replace(configured.uplink(&wishes, twin.desired()));
        let routes = watch::channel(twin.version().map(|_| meaning::routes(&wishes))).0;
        Self {
            routes,
            twin,
            sender,
            path,
            sound: known.sound,
            wishes,
            mistakes,
            unwritten: false,
            configured,
            log_level,
            state: "running",
            uplink,
            counts: watch::channel(Counts::default()).0,
        }
    }

    /// The routes that are desired; `None` while nothing is known of the twin.
    pub fn routes(&self) -> watch::Receiver<Option<Arc<[Route]>>> {
        self.routes.subscribe()
    }

    /// What went wrong so far.
    pub fn counts(&self) -> watch::Receiver<Counts> {
        self.counts.subscribe()
    }

    /// Keeps it until `stop`; then reports that the agent is stopping.
    pub async fn run(mut self, mut parts: Parts, mut news: mpsc::Receiver<News>, stop: CancellationToken) {
        if self.twin.version().is_some() {
            let known = std::mem::take(&mut self.wishes);
            self.distribute(known, &parts).await;
        }
        let mut slow = tokio::time::interval(REPORT);
        slow.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.twin.due();
            let acts = tokio::select! {
                () = stop.cancelled() => break,
                Some(news) = news.recv() => self.hear(news),
                () = sleep_until(due) => self.twin.tick(Instant::now()),
                () = parts.changed() => self.report(&parts),
                _ = slow.tick() => {
                    // A file that was missing may have come, and a disk that was full may have room.
                    if !self.mistakes.is_empty() || self.unwritten {
                        self.understand(&parts, false).await;
                    }
                    self.report(&parts)
                }
            };
            self.perform(acts, &parts).await;
            self.counts.send_replace(self.twin.counts());
        }
        self.state = "stopping";
        let last = async {
            let mut acts = self.report(&parts);
            loop {
                self.perform(acts, &parts).await;
                if self.twin.has_reported() {
                    return;
                }
                acts = tokio::select! {
                    Some(news) = news.recv() => self.hear(news),
                    () = sleep_until(self.twin.due()) => self.twin.tick(Instant::now()),
                };
            }
        };
        if tokio::time::timeout(FAREWELL, last).await.is_err() {
            tracing::warn!("the twin was not told in time that the agent is stopping");
        }
    }

    fn hear(&mut self, news: News) -> Vec<Act> {
        let now = Instant::now();
        match news {
            News::Connected => self.twin.connected(now),
            News::Disconnected => {
                self.twin.disconnected();
                Vec::new()
            }
            News::Answer { status, request_id, body } => self.twin.answer(status, &request_id, &body, now),
            News::Patch { version, body } => self.twin.patch(version, &body, now),
        }
    }

    async fn perform(&mut self, acts: Vec<Act>, parts: &Parts) {
        let mut acts = VecDeque::from(acts);
        while let Some(act) = acts.pop_front() {
            let (topic, body) = match act {
                // A blank, as Microsoft's library sends.
                Act::Get { rid } => (topic::twin_read(&rid), Bytes::from_static(b" ")),
                Act::Patch { rid, body } => (topic::twin_write(&rid), Bytes::from(body)),
                Act::Apply => {
                    self.understand(parts, true).await;
                    acts.extend(self.report(parts));
                    continue;
                }
            };
            let message = Outgoing { topic, body, qos: Qos::AtLeastOnce, retain: false };
            if let Err(error) = self.sender.publish(message).await {
                // The twin asks again: after the next connect, or when no answer has come.
                tracing::debug!(%error, "a request of the twin was not sent");
            }
        }
    }

    /// Follows what is desired now; where that `is_news`, also if it comes to the same as before.
    async fn understand(&mut self, parts: &Parts, is_news: bool) {
        let (desired, before) = (self.twin.desired().clone(), self.wishes.clone());
        // Reads the files that a registry's section names.
        let read = move || desired::read(&desired, &before);
        let (wishes, mistakes) = match tokio::task::spawn_blocking(read).await {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, "reading what the twin desires");
                return;
            }
        };
        if mistakes != self.mistakes {
            // Those that are reported, too.
            for Mistake { path, error } in mistakes.iter().take(reported::MAX_MISTAKES) {
                tracing::warn!(path, error, "the twin is wrong here");
            }
        }
        self.mistakes = mistakes;
        meaning::keep_sound(&mut self.sound, self.twin.desired(), &self.mistakes);
        let is_news = is_news || wishes != self.wishes;
        if is_news || self.unwritten {
            self.keep().await;
        }
        if is_news {
            self.distribute(wishes, parts).await;
        }
    }

    /// Tells all parts what is desired of them.
    async fn distribute(&mut self, wishes: Wishes, parts: &Parts) {
        tracing::info!(version = self.twin.version(), mistakes = self.mistakes.len(), "following the twin");
        if wishes.log_level != self.wishes.log_level {
            let level = wishes.log_level.as_ref().unwrap_or(&self.configured.log_level);
            if let Err(error) = self.log_level.set(level) {
                tracing::error!(%error, "setting the level of the log");
            }
        }
        let uplink = self.configured.uplink(&wishes, self.twin.desired());
        let collect = (wishes.collect != self.wishes.collect).then_some(wishes.collect);
        let models = meaning::models(&wishes, self.twin.desired(), &uplink);
        let wanted = Wanted { models, unclear: wishes.unclear.clone(), collect };
        self.uplink.send_if_modified(|known| {
            let changed = *known != uplink;
            *known = uplink;
            changed
        });
        let (answer, followed) = oneshot::channel();
        // Neither is answered only where the agent is stopping.
        if parts.orders.send(Order::Twin(wanted, answer)).await.is_ok() {
            let _ = followed.await;
        }
        // Behind the models that they lead to, so that a message is not refused for one that is on its way.
        self.routes.send_replace(Some(meaning::routes(&wishes)));
        self.wishes = wishes;
    }

    fn report(&mut self, parts: &Parts) -> Vec<Act> {
        let mut reported = parts.reporter.reported();
        reported.agent.state = self.state.to_owned();
        let trouble = parts.trouble.borrow().clone();
        let trouble = trouble.map(|error| Mistake { path: "registry".to_owned(), error });
        let mistakes: Vec<Mistake> = self.mistakes.iter().cloned().chain(trouble).collect();
        let facts = Facts {
            state: &reported,
            applied_version: self.twin.version(),
            mistakes: &mistakes,
            registry_configured: *self.uplink.borrow() != Uplink::None,
            registry_connected: parts.link.is_online(),
        };
        self.twin.report(reported::document(&facts), Instant::now())
    }

    async fn keep(&mut self) {
        let known = Known {
            version: self.twin.version(),
            desired: self.twin.desired().clone(),
            sound: self.sound.clone(),
        };
        let path = self.path.clone();
        let write = move || durable::replace(&path, &serde_json::to_vec(&known).map_err(io::Error::other)?);
        let written =
            tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        self.unwritten = written.is_err();
        if let Err(error) = written {
            tracing::error!(path = %self.path.display(), %error, "what the twin desires could not be written down");
        }
    }
}

impl Parts {
    /// Waits until something has changed that is worth a report.
    async fn changed(&mut self) {
        loop {
            tokio::select! {
                Ok(()) = self.status.changed() => return,
                Ok(()) = self.connects.changed() => return,
                Ok(()) = self.trouble.changed() => return,
                Ok(()) = self.pressure.changed() => return,
                Ok(()) = self.ledger.changed() => {
                    // Rows come and go all the time: they are worth a report a minute, unless all are up.
                    if self.ledger.borrow_and_update().held == 0 {
                        return;
                    }
                }
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Known> {
    match durable::read(path, 4 * twin::MAX_DESIRED_BYTES as u64) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Known::default()),
        Err(error) => Err(error),
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
