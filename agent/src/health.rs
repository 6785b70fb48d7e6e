//! What the device says of itself: the reported state, and whether it is ready.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cloud_sync::contract::{AgentInfo, Hardware, Ledger, Presence, Reported};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::board::{Board, engines};
use crate::certificate;
use crate::deploy::driver::Status;
use crate::link::Link;
use crate::pressure::Pressure;

/// Least time between two reports: a deployment passes its phases in milliseconds, and a report says them all.
const QUIET: Duration = Duration::from_millis(200);

/// Longest time between two reports while the link is up. Carries the ledger and how the machine fares, and says again that
/// the device is there: a broker that was killed may have lost that, or the last will of an older connection may
/// have come after it.
const REPORT: Duration = Duration::from_secs(60);

/// Knows the device's state. Cheap to clone.
#[derive(Clone)]
pub struct Reporter {
    agent: Arc<AgentInfo>,
    hardware: Arc<RwLock<Hardware>>,
    data: Arc<Path>,
    certificate: Option<Arc<Path>>,
    status: watch::Receiver<Status>,
    ledger: watch::Receiver<Ledger>,
    pressure: watch::Receiver<Pressure>,
}

impl Reporter {
    /// A reporter of what these channels say, and of the machine: `board` at the start, and as it then becomes. `data` is
    /// the data directory, `certificate` the file with the device's own chain.
    pub fn new(
        boot_id: &str,
        data: PathBuf,
        certificate: Option<PathBuf>,
        board: Board,
        status: watch::Receiver<Status>,
        ledger: watch::Receiver<Ledger>,
        pressure: watch::Receiver<Pressure>,
    ) -> Self {
        let agent = AgentInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: boot_id.to_owned(),
            state: "running".to_owned(),
        };
        let certificate: Option<Arc<Path>> = certificate.map(Into::into);
        Self {
            agent: Arc::new(agent),
            hardware: Arc::new(RwLock::new(hardware(&board, certificate.as_deref()))),
            data: data.into(),
            certificate,
            status,
            ledger,
            pressure,
        }
    }

    /// The state now.
    pub fn reported(&self) -> Reported {
        let status = self.status.borrow().clone();
        Reported {
            revision: status.revision,
            models: status.models,
            agent: (*self.agent).clone(),
            hardware: Hardware {
                pressure: Some(self.pressure.borrow().on_the_wire()),
                engines: engines(engine::known()),
                ..self.hardware.read().unwrap_or_else(PoisonError::into_inner).clone()
            },
            ledger: self.ledger.borrow().clone(),
        }
    }

    /// Reports whenever the link has come up or the state has changed, until `stop`; then reports `stopping`
    /// and that the device is gone.
    pub async fn run(mut self, link: Link, mut connects: watch::Receiver<u64>, stop: CancellationToken) {
        let mut due = tokio::time::interval(REPORT);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut drained: Option<Instant> = None;
        loop {
            let with_presence = tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = connects.changed() => true,
                Ok(()) = self.status.changed() => false,
                Ok(()) = self.pressure.changed() => {
                    self.measure().await;
                    false
                }
                Ok(()) = self.ledger.changed() => {
                    // Rows come and go all the time. That all are up is worth a word of its own, and not with each batch.
                    let is_news = drained.is_none_or(|drained| drained.elapsed() >= REPORT);
                    if self.ledger.borrow_and_update().held > 0 || !is_news {
                        continue;
                    }
                    drained = Some(Instant::now());
                    false
                }
                _ = due.tick() => {
                    self.measure().await;
                    true
                }
            };
            if !link.is_online() {
                continue;
            }
            if with_presence {
                self.log_failure(link.presence(&presence(&self.agent.boot_id, true)).await);
            }
            self.log_failure(link.report(&self.reported()).await);
            tokio::select! {
                () = tokio::time::sleep(QUIET) => {}
                () = stop.cancelled() => break,
            }
        }
        if link.is_online() {
            let mut last = self.reported();
            last.agent.state = "stopping".to_owned();
            self.log_failure(link.report(&last).await);
            self.log_failure(link.presence(&presence(&self.agent.boot_id, false)).await);
        }
    }

    async fn measure(&self) {
        let (data, certificate) = (self.data.clone(), self.certificate.clone());
        let look = move || hardware(&Board::here(&data), certificate.as_deref());
        match tokio::task::spawn_blocking(look).await {
            Ok(hardware) => *self.hardware.write().unwrap_or_else(PoisonError::into_inner) = hardware,
            Err(error) => tracing::error!(%error, "describing this machine"),
        }
    }

    fn log_failure(&self, sent: Result<(), crate::link::LinkError>) {
        if let Err(error) = sent {
            // Said again whole at the next connect.
            tracing::debug!(%error, "the state was not reported");
        }
    }
}

/// What the cloud is told of `board`, and when the chain in `certificate` ends. Blocking.
fn hardware(board: &Board, certificate: Option<&Path>) -> Hardware {
    let until = certificate.and_then(certificate::chain_until);
    let certificate_until = until.and_then(|until| until.as_second().try_into().ok());
    Hardware { certificate_until, ..board.hardware() }
}

/// Whether this device is there.
pub fn presence(boot_id: &str, online: bool) -> Presence {
    Presence { online, boot_id: boot_id.to_owned(), agent_version: env!("CARGO_PKG_VERSION").to_owned() }
}
