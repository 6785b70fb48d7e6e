//! The work that deployments take, beside the task that owns them: fetching, verifying, waiting, loading.
//!
//! Invariant: a model has at most one job of each kind, and only the outcome of the job that is current is handed
//! out. What a job that was replaced or abandoned still says is dropped.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::contract::Transfer;
use cloud_sync::name::ModelName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::prove::{ProofError, prove};
use super::{Event, Target};
use crate::fetch::{FetchError, Fetcher};
use crate::scorer::Proven;
use crate::settings::{Settings, UnknownSetting};
use crate::vault::{Vault, VaultError, Verified};

/// What a job is for; a model has at most one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// The version that is wanted.
    Target,
    /// The version that served before, and shall again.
    Restore,
}

/// What came of a job.
pub(super) struct Outcome {
    pub(super) name: ModelName,
    pub(super) event: Event,
    pub(super) found: Found,
}

/// What a job brings beside its event.
pub(super) enum Found {
    Nothing,
    Transfer(Transfer),
    Verified(Box<Verified>),
    Turn(OwnedSemaphorePermit),
    /// With the milliseconds that it took.
    Proven(Box<Proven>, u64),
}

/// A job that has come to its end, current or not.
struct Ended {
    number: u64,
    work: Work,
    outcome: Outcome,
}

/// What is needed to load a version.
pub(super) struct Loading {
    pub(super) name: ModelName,
    pub(super) target: Target,
    pub(super) settings: Result<Settings, UnknownSetting>,
    pub(super) vault: Arc<Vault>,
    pub(super) verified: Option<Verified>,
    pub(super) onnxruntime: Option<PathBuf>,
    /// Held until the load has really ended, also when nobody waits for it any more.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// All jobs that are under way.
pub(super) struct Jobs {
    current: BTreeMap<(ModelName, Work), (u64, AbortOnDropHandle<()>)>,
    last: u64,
    outcomes: (mpsc::Sender<Ended>, mpsc::Receiver<Ended>),
    /// One load at a time: two models at once may need more memory than there is.
    loads: Arc<Semaphore>,
}

impl Jobs {
    pub(super) fn new() -> Self {
        // Two jobs a model: as many outcomes can wait without holding up a job.
        let outcomes = mpsc::channel(2 * cloud_sync::limits::MAX_MODELS);
        Self { current: BTreeMap::new(), last: 0, outcomes, loads: Arc::new(Semaphore::new(1)) }
    }

    /// The next outcome of a job that is current.
    pub(super) async fn next(&mut self) -> Option<Outcome> {
        loop {
            let Ended { number, work, outcome } = self.outcomes.1.recv().await?;
            let key = (outcome.name.clone(), work);
            if self.current.get(&key).is_some_and(|(current, _)| *current == number) {
                self.current.remove(&key);
                return Some(outcome);
            }
        }
    }

    /// Stops a model's job of one kind.
    pub(super) fn abandon(&mut self, name: &ModelName, work: Work) {
        self.current.remove(&(name.clone(), work));
    }

    /// Stops all jobs of a model.
    pub(super) fn abandon_all(&mut self, name: &ModelName) {
        self.current.retain(|(model, _), _| model != name);
    }

    /// Whether a version that served before has yet to be loaded.
    pub(super) fn is_restoring(&self) -> bool {
        self.current.keys().any(|(_, work)| *work == Work::Restore)
    }

    /// Pulls a bundle.
    pub(super) fn fetch(&mut self, name: &ModelName, target: &Target, pause: Duration, fetcher: Fetcher) {
        let (digest, size, source) = (target.digest, target.size, target.source.clone());
        self.start(name, Work::Target, async move {
            tokio::time::sleep(pause).await;
            match fetcher.fetch(digest, size, &source).await {
                Ok(transfer) => (Event::Fetched(digest), Found::Transfer(transfer)),
                Err(FetchError::Later(why)) => (Event::Stalled(digest, why), Found::Nothing),
                Err(FetchError::Never(why)) => (Event::FetchRefused(digest, why), Found::Nothing),
            }
        });
    }

    /// Compares every byte of a bundle.
    pub(super) fn verify(&mut self, name: &ModelName, target: &Target, pause: Duration, vault: Arc<Vault>) {
        let digest = target.digest;
        self.start(name, Work::Target, async move {
            tokio::time::sleep(pause).await;
            let event = match blocking(move || vault.verify(&digest)).await {
                Ok(Ok(bundle)) => return (Event::Verified(digest), Found::Verified(Box::new(bundle))),
                Ok(Err(error)) => match Failure::from(error) {
                    Failure::Incomplete => Event::Incomplete(digest),
                    Failure::Later(why) => Event::Stalled(digest, why),
                    Failure::Final(why) => Event::Unusable(digest, why),
                },
                Err(why) => Event::Unusable(digest, why),
            };
            (event, Found::Nothing)
        });
    }

    /// Waits until no other model is being loaded.
    pub(super) fn await_turn(&mut self, name: &ModelName, target: &Target, pause: Duration, work: Work) {
        let (digest, loads) = (target.digest, self.loads.clone());
        self.start(name, work, async move {
            tokio::time::sleep(pause).await;
            let event = match work {
                Work::Target => Event::ProofTurn(digest),
                Work::Restore => Event::RestoreTurn(digest),
            };
            match loads.acquire_owned().await {
                Ok(permit) => (event, Found::Turn(permit)),
                // Never closed; without a turn nothing is loaded.
                Err(error) => (Event::Stalled(digest, error.to_string()), Found::Nothing),
            }
        });
    }

    /// Loads and proves a version.
    pub(super) fn load(&mut self, loading: Loading, work: Work) {
        let (name, digest) = (loading.name.clone(), loading.target.digest);
        self.start(&name, work, async move {
            let begun = Instant::now();
            let result = blocking(move || loading.run()).await.unwrap_or_else(|why| Err(Failure::Final(why)));
            let event = match (work, result) {
                (_, Ok(proven)) => {
                    let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    let event = match work {
                        Work::Target => Event::Proved(digest),
                        Work::Restore => Event::Restored(digest),
                    };
                    return (event, Found::Proven(Box::new(proven), took));
                }
                (Work::Target, Err(Failure::Final(why))) => Event::ProofFailed(digest, why),
                (Work::Target, Err(failure)) => Event::Stalled(digest, failure.to_string()),
                (Work::Restore, Err(Failure::Incomplete)) => Event::RestoreIncomplete(digest),
                (Work::Restore, Err(Failure::Later(why))) => Event::RestoreStalled(digest, why),
                (Work::Restore, Err(Failure::Final(why))) => Event::RestoreFailed(digest, why),
            };
            (event, Found::Nothing)
        });
    }

    /// Starts a job in place of the one before it of the same kind.
    fn start(
        &mut self,
        name: &ModelName,
        work: Work,
        job: impl Future<Output = (Event, Found)> + Send + 'static,
    ) {
        self.last += 1;
        let (number, outcomes, of) = (self.last, self.outcomes.0.clone(), name.clone());
        let task = tokio::spawn(async move {
            let (event, found) = job.await;
            let _ = outcomes.send(Ended { number, work, outcome: Outcome { name: of, event, found } }).await;
        });
        self.current.insert((name.clone(), work), (number, AbortOnDropHandle::new(task)));
    }
}

impl Loading {
    fn run(self) -> Result<Proven, Failure> {
        let Self { name, target, settings, vault, verified, onnxruntime, permit } = self;
        let settings = settings.map_err(|error| Failure::Final(error.to_string()))?;
        let bundle = match verified {
            Some(bundle) => bundle,
            None => vault.verify(&target.digest)?,
        };
        let proven = prove(&bundle, &name, target.version, &settings, onnxruntime)?;
        drop(permit);
        Ok(proven)
    }
}

/// Why a version could not be loaded, as far as it is acted upon differently.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("its bytes are not whole")]
    Incomplete,
    #[error("{0}")]
    Later(String),
    #[error("{0}")]
    Final(String),
}

impl From<VaultError> for Failure {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Incomplete(..) => Self::Incomplete,
            VaultError::Io { .. } => Self::Later(error.to_string()),
            VaultError::Foreign(_) | VaultError::Bundle(_) | VaultError::Budget { .. } => {
                Self::Final(error.to_string())
            }
        }
    }
}

impl From<ProofError> for Failure {
    fn from(error: ProofError) -> Self {
        match error {
            ProofError::Bundle(error) => error.into(),
            // It fits when memory is free again.
            error @ ProofError::NoMemory { .. } => Self::Later(error.to_string()),
            error => Self::Final(error.to_string()),
        }
    }
}

/// Runs blocking work off the network's threads; a panic in it is an error.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}
