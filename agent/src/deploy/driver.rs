//! Performs what the state machine decides: writes the state, then pulls, verifies, proves, swaps and collects.
//!
//! One task owns all deployments. Whatever takes time runs beside it and comes back as an event, so orders are
//! taken at any moment; each such piece of work is stopped when its target is no longer wanted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::contract::{Collect, Desired, Phase, ReportedModel, Transfer};
use cloud_sync::digest::Digest;
use cloud_sync::name::ModelName;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::prove::{ProofError, prove};
use super::{Deployment, Effect, Event, Target, step};
use crate::durable;
use crate::fetch::{FetchError, Fetcher};
use crate::scorer::{Proven, Scorer};
use crate::settings::Settings;
use crate::vault::{Vault, VaultError};

/// Pause before a fetch that failed for now is tried again.
const RETRY: Duration = Duration::from_secs(15);

/// Orders that may wait; the sender waits when they are used up.
pub const ORDERS: usize = 64;

/// What the driver can be told.
#[derive(Debug)]
pub enum Order {
    /// The cloud's wishes.
    Desired(Desired),
    /// Serve the version before. Answers with that version, or with why not.
    Rollback(ModelName, oneshot::Sender<Result<u64, String>>),
    /// Collect so, until the cloud says otherwise.
    Collect(Collect, oneshot::Sender<()>),
}

/// What the rest of the agent may know of the deployments.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// The revision of the desired state that is being followed.
    pub revision: u64,
    /// What is collected where a model's settings do not say.
    pub collect: Option<Collect>,
    /// Each model.
    pub models: Vec<ReportedModel>,
    /// Whether everything that serves after a restart is loaded again.
    pub restored: bool,
}

/// Where the driver works.
pub struct Parts {
    /// The models on disk.
    pub vault: Arc<Vault>,
    /// What pulls them.
    pub fetcher: Fetcher,
    /// What serves them.
    pub scorer: Scorer,
    /// Settings of a model where the cloud leaves them open.
    pub settings: Settings,
    /// Where ONNX Runtime's library is, if that is configured.
    pub onnxruntime: Option<PathBuf>,
    /// The file that holds the state.
    pub state: PathBuf,
}

/// The state file can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("{doing} the deployments' state {path}: {source}", path = .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The state can't be encoded.
    #[error("encoding the deployments' state: {0}")]
    Encode(serde_cbor::Error),
}

/// The one task that owns the deployments.
pub struct Driver {
    parts: Parts,
    state: State,
    work: BTreeMap<(ModelName, Work), AbortOnDropHandle<()>>,
    transfers: BTreeMap<ModelName, (Digest, Transfer)>,
    outcomes: (mpsc::Sender<Outcome>, mpsc::Receiver<Outcome>),
    status: watch::Sender<Status>,
    /// One proof at a time: two models that are loaded at once may need more memory than there is.
    proofs: Arc<Semaphore>,
}

/// What a piece of work is for; a model has at most one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Target,
    Restore,
}

/// All that has to survive.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    revision: u64,
    collect: Option<Collect>,
    models: BTreeMap<ModelName, Deployment>,
}

/// What came of a piece of work.
struct Outcome {
    name: ModelName,
    work: Work,
    event: Event,
    proven: Option<Proven>,
    transfer: Option<Transfer>,
}

impl Driver {
    /// Reads the state. A state that can't be decoded is set aside: the cloud says again what is wanted.
    pub fn open(parts: Parts) -> Result<(Self, watch::Receiver<Status>), StateError> {
        let state = match std::fs::read(&parts.state) {
            Ok(bytes) => serde_cbor::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(path = %parts.state.display(), %error, "the deployments' state is damaged; starting anew");
                State::default()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(source) => {
                return Err(StateError::Io { doing: "reading", path: parts.state.clone(), source });
            }
        };
        let (status, watcher) = watch::channel(Status::default());
        // Each model has one piece of work at a time, so this many outcomes can't wait.
        let outcomes = mpsc::channel(2 * cloud_sync::limits::MAX_MODELS);
        let (work, transfers) = (BTreeMap::new(), BTreeMap::new());
        let proofs = Arc::new(Semaphore::new(1));
        Ok((Self { parts, state, work, transfers, outcomes, status, proofs }, watcher))
    }

    /// Follows orders until `stop`.
    pub async fn run(
        mut self,
        mut orders: mpsc::Receiver<Order>,
        stop: CancellationToken,
    ) -> Result<(), StateError> {
        let names: Vec<ModelName> = self.state.models.keys().cloned().collect();
        for name in names {
            self.handle(&name, Event::Restarted, None).await?;
        }
        self.publish();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                order = orders.recv() => match order {
                    Some(order) => self.follow(order).await?,
                    None => return Ok(()),
                },
                Some(outcome) = self.outcomes.1.recv() => {
                    self.conclude(outcome).await?;
                }
            }
            self.publish();
        }
    }

    async fn follow(&mut self, order: Order) -> Result<(), StateError> {
        match order {
            Order::Desired(desired) if desired.revision <= self.state.revision => {
                tracing::debug!(revision = desired.revision, "an old desired state is ignored");
            }
            Order::Desired(desired) => self.desire(desired).await?,
            Order::Rollback(name, answer) => {
                let previous = self.state.models.get(&name).map(|deployment| deployment.previous.clone());
                let result = match previous {
                    None => Err(format!("model {name} is not deployed here")),
                    Some(None) => Err(format!("model {name} has no version to roll back to")),
                    Some(Some(previous)) => {
                        self.handle(&name, Event::Rollback, None).await?;
                        Ok(previous.version)
                    }
                };
                let _ = answer.send(result);
            }
            Order::Collect(collect, answer) => {
                self.state.collect = Some(collect);
                self.write().await?;
                let _ = answer.send(());
            }
        }
        Ok(())
    }

    async fn desire(&mut self, desired: Desired) -> Result<(), StateError> {
        tracing::info!(revision = desired.revision, models = desired.models.len(), "new desired state");
        let mut wanted: BTreeMap<ModelName, Target> = BTreeMap::new();
        for model in &desired.models {
            wanted.insert(model.name.clone(), Target::from(model));
        }
        self.state.revision = desired.revision;
        self.state.collect = Some(desired.collect);
        let gone: Vec<ModelName> =
            self.state.models.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for name in &gone {
            self.state.models.remove(name);
        }
        self.write().await?;
        for name in gone {
            self.work.retain(|(model, _), _| *model != name);
            self.transfers.remove(&name);
            self.unload(&name).await;
            self.collect().await;
        }
        for (name, target) in wanted {
            if self.state.models.contains_key(&name) {
                self.handle(&name, Event::Desired(target), None).await?;
            } else {
                let (deployment, effects) = Deployment::new(target);
                self.state.models.insert(name.clone(), deployment);
                self.write().await?;
                self.perform(&name, effects).await;
            }
        }
        Ok(())
    }

    async fn conclude(&mut self, outcome: Outcome) -> Result<(), StateError> {
        let Outcome { name, work, event, proven, transfer } = outcome;
        self.work.remove(&(name.clone(), work));
        if let (Event::Fetched(digest), Some(transfer)) = (&event, transfer) {
            self.transfers.insert(name.clone(), (*digest, transfer));
        }
        if let (Event::Proved(digest), Some(transfer)) = (&event, transfer)
            && let Some((of, known)) = self.transfers.get_mut(&name)
            && of == digest
        {
            known.proof_ms = transfer.proof_ms;
        }
        self.handle(&name, event, proven).await
    }

    /// One step: decide, write, do.
    async fn handle(
        &mut self,
        name: &ModelName,
        event: Event,
        proven: Option<Proven>,
    ) -> Result<(), StateError> {
        let Some(before) = self.state.models.get(name).cloned() else { return Ok(()) };
        let retry = match &event {
            Event::FetchStalled(digest, _) => before.expects(Phase::Fetching, *digest),
            _ => false,
        };
        let restored = match &event {
            Event::Restored(digest) => before.active.as_ref().is_some_and(|active| active.digest == *digest),
            _ => false,
        };
        let (after, effects) = step(before.clone(), event);
        if after.phase != before.phase || after.why != before.why {
            let why = after.why.as_deref().unwrap_or_default();
            tracing::info!(model = %name, version = after.target.version, phase = ?after.phase, why, "deployment");
        }
        let changed = after != before;
        let target = after.target.clone();
        self.state.models.insert(name.clone(), after);
        if changed {
            self.write().await?;
        }
        match proven {
            Some(proven) if restored || effects.iter().any(|effect| matches!(effect, Effect::Swap(_))) => {
                self.swap(name, proven).await;
            }
            // A proof that came too late: its model is dropped.
            _ => {}
        }
        self.perform(name, effects).await;
        if retry {
            self.fetch(name, target, RETRY);
        }
        Ok(())
    }

    async fn perform(&mut self, name: &ModelName, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Abandon => drop(self.work.remove(&(name.clone(), Work::Target))),
                Effect::Fetch(target) => self.fetch(name, target, Duration::ZERO),
                Effect::Verify(target) => self.verify(name, target),
                Effect::Prove(target) => self.prove(name, target, Work::Target),
                Effect::Restore(target) => self.prove(name, target, Work::Restore),
                // Done by `handle`, which holds the proven model.
                Effect::Swap(_) => {}
                Effect::Unload => self.unload(name).await,
                Effect::Collect => self.collect().await,
            }
        }
    }

    fn fetch(&mut self, name: &ModelName, target: Target, pause: Duration) {
        let fetcher = self.parts.fetcher.clone();
        let kept: Vec<Digest> = self.state.models.values().flat_map(Deployment::kept).collect();
        self.spawn(name, Work::Target, async move {
            tokio::time::sleep(pause).await;
            match fetcher.fetch(target.digest, target.size, kept).await {
                Ok(transfer) => (Event::Fetched(target.digest), None, Some(transfer)),
                Err(FetchError::Later(why)) => (Event::FetchStalled(target.digest, why), None, None),
                Err(FetchError::Never(why)) => (Event::FetchRefused(target.digest, why), None, None),
            }
        });
    }

    fn verify(&mut self, name: &ModelName, target: Target) {
        let vault = self.parts.vault.clone();
        let digest = target.digest;
        self.spawn(name, Work::Target, async move {
            let event = match blocking(move || vault.verify(&digest).map(drop)).await {
                Ok(Ok(())) => Event::Verified(digest),
                Ok(Err(VaultError::Bundle(error))) => Event::Unusable(digest, error.to_string()),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "a bundle is not whole; fetching what is missing");
                    Event::Incomplete(digest)
                }
                Err(why) => Event::Unusable(digest, why),
            };
            (event, None, None)
        });
    }

    fn prove(&mut self, name: &ModelName, target: Target, work: Work) {
        let (vault, model) = (self.parts.vault.clone(), name.clone());
        let (settings, onnxruntime) =
            (self.parts.settings.with(&target.settings), self.parts.onnxruntime.clone());
        let (digest, version, proofs) = (target.digest, target.version, self.proofs.clone());
        self.spawn(name, work, async move {
            let _permit = proofs.acquire_owned().await;
            let begun = Instant::now();
            let result = blocking(move || {
                let settings = settings.map_err(|error| Failure::Final(error.to_string()))?;
                // Hashed again: between the phases there may have been years and a worn-out disk.
                let verified = vault.verify(&digest).map_err(Failure::from)?;
                prove(&verified, &model, version, &settings, onnxruntime).map_err(Failure::from)
            })
            .await;
            let proof_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            let transfer = Some(Transfer { proof_ms, ..Transfer::default() });
            match (work, result.unwrap_or_else(|why| Err(Failure::Final(why)))) {
                (Work::Target, Ok(proven)) => (Event::Proved(digest), Some(proven), transfer),
                (Work::Target, Err(failure)) => (Event::ProofFailed(digest, failure.to_string()), None, None),
                (Work::Restore, Ok(proven)) => (Event::Restored(digest), Some(proven), None),
                (Work::Restore, Err(Failure::Incomplete)) => (Event::RestoreIncomplete(digest), None, None),
                (Work::Restore, Err(failure)) => {
                    (Event::RestoreFailed(digest, failure.to_string()), None, None)
                }
            }
        });
    }

    /// Starts a piece of work; the one before it of the same kind is stopped.
    fn spawn<F>(&mut self, name: &ModelName, work: Work, job: F)
    where
        F: Future<Output = (Event, Option<Proven>, Option<Transfer>)> + Send + 'static,
    {
        let (outcomes, of) = (self.outcomes.0.clone(), name.clone());
        let task = tokio::spawn(async move {
            let (event, proven, transfer) = job.await;
            let _ = outcomes.send(Outcome { name: of, work, event, proven, transfer }).await;
        });
        self.work.insert((name.clone(), work), AbortOnDropHandle::new(task));
    }

    async fn swap(&mut self, name: &ModelName, proven: Proven) {
        let scorer = self.parts.scorer.clone();
        let digest = proven.facts.digest;
        match blocking(move || scorer.swap(proven)).await {
            Ok(Ok(swapped)) => {
                if let Some((of, transfer)) = self.transfers.get_mut(name)
                    && *of == digest
                {
                    transfer.swap_us = u64::try_from(swapped.as_micros()).unwrap_or(u64::MAX);
                }
            }
            Ok(Err(error)) => tracing::error!(model = %name, %error, "the workers could not be started"),
            Err(error) => tracing::error!(model = %name, error, "the swap failed"),
        }
    }

    async fn unload(&self, name: &ModelName) {
        let (scorer, name) = (self.parts.scorer.clone(), name.clone());
        if let Err(error) = blocking(move || scorer.remove(&name)).await {
            tracing::error!(error, "unloading failed");
        }
    }

    async fn collect(&self) {
        let vault = self.parts.vault.clone();
        let kept: Vec<Digest> = self.state.models.values().flat_map(Deployment::kept).collect();
        match blocking(move || vault.collect(&kept)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "what is in no use could not be removed"),
            Err(error) => tracing::error!(error, "collecting failed"),
        }
    }

    async fn write(&self) -> Result<(), StateError> {
        let bytes = serde_cbor::to_vec(&self.state).map_err(StateError::Encode)?;
        let path = self.parts.state.clone();
        let written = blocking(move || durable::replace(&path, &bytes)).await;
        let error = |source| StateError::Io { doing: "writing", path: self.parts.state.clone(), source };
        written.map_err(std::io::Error::other).map_err(error)?.map_err(error)
    }

    fn publish(&self) {
        let restoring = self.work.keys().any(|(_, work)| *work == Work::Restore);
        let status = Status {
            revision: self.state.revision,
            collect: self.state.collect,
            models: self.state.models.iter().map(|(name, state)| self.describe(name, state)).collect(),
            restored: !restoring,
        };
        self.status.send_if_modified(|known| {
            let changed = *known != status;
            if changed {
                *known = status;
            }
            changed
        });
    }

    fn describe(&self, name: &ModelName, state: &Deployment) -> ReportedModel {
        let live = self.parts.scorer.get(name.as_str());
        let facts = live.as_ref().map(|live| &live.facts);
        let transfer = facts.and_then(|facts| {
            let (digest, transfer) = self.transfers.get(name)?;
            (*digest == facts.digest).then_some(*transfer)
        });
        ReportedModel {
            name: name.clone(),
            version: state.target.version,
            phase: state.phase,
            why: state.why.clone().map(cloud_sync::limits::bounded_text),
            active: facts.map(|facts| facts.version),
            previous: state.previous.as_ref().map(|previous| previous.version),
            engine: facts.map(|facts| facts.engine.clone()),
            provider: facts.map(|facts| facts.provider.clone()),
            memory_bytes: facts.map(|facts| facts.memory_bytes),
            transfer,
        }
    }
}

/// Why a version could not be proven, as far as the driver acts differently.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("its bytes are not whole")]
    Incomplete,
    #[error("{0}")]
    Final(String),
}

impl From<VaultError> for Failure {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Incomplete(..) => Self::Incomplete,
            error => Self::Final(error.to_string()),
        }
    }
}

impl From<ProofError> for Failure {
    fn from(error: ProofError) -> Self {
        match error {
            ProofError::Bundle(error) => error.into(),
            error => Self::Final(error.to_string()),
        }
    }
}

/// Runs blocking work off the network's threads; a panic in it is an error.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}
