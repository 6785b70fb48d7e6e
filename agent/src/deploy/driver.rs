//! Performs what the state machine decides: writes the state, then pulls, verifies, proves, swaps and collects.
//!
//! One task owns all deployments. Whatever takes time runs beside it and comes back as an event, so orders are
//! taken at any moment; each such piece of work is stopped when its target is no longer wanted.

mod orders;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::contract::{Collect, Phase, ReportedModel, Transfer};
use cloud_sync::digest::Digest;
use cloud_sync::name::ModelName;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use orders::{Models, Order, Wanted};

use super::jobs::{Found, Jobs, Loading, Outcome, Work, blocking};
use super::state::{State, StateError};
use super::{Deployment, Effect, Event, Target, step};
use crate::fetch::{Fetcher, Source};
use crate::scorer::{Proven, Scorer};
use crate::settings::Settings;
use crate::vault::{Vault, Verified};

/// Pause before what failed for now is tried again.
const RETRY: Duration = Duration::from_secs(15);

/// Longest pause before a server is asked again that did not have a bundle: each time costs some of a metered link. Other
/// failures are cheap.
const LONGEST_RETRY: Duration = Duration::from_secs(15 * 60);

/// Orders that may wait; the sender waits when they are used up.
pub const ORDERS: usize = 64;

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

/// The one task that owns the deployments.
pub struct Driver {
    parts: Parts,
    state: State,
    /// Whether `state` is not yet on the disk: it was full, say.
    unwritten: bool,
    jobs: Jobs,
    /// Bundles that have been verified and wait for their proof.
    verified: BTreeMap<ModelName, Verified>,
    transfers: BTreeMap<ModelName, (Digest, Transfer)>,
    /// How often a model has stalled in a row.
    stalled: BTreeMap<ModelName, u32>,
    /// Whether everything that served before the start has been loaded again, or given up.
    restored: bool,
    status: watch::Sender<Status>,
}

impl Driver {
    /// Reads the state. One that can't be decoded is set aside: the cloud says again what is wanted.
    pub fn open(parts: Parts) -> Result<(Self, watch::Receiver<Status>), StateError> {
        let state = State::read(&parts.state)?;
        let (status, watcher) = watch::channel(Status::default());
        let driver = Self {
            parts,
            state,
            unwritten: false,
            jobs: Jobs::new(),
            verified: BTreeMap::new(),
            transfers: BTreeMap::new(),
            stalled: BTreeMap::new(),
            restored: false,
            status,
        };
        Ok((driver, watcher))
    }

    /// Follows orders until `stop`.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Order>, stop: CancellationToken) {
        self.keep();
        // The vault may still name what was given back before this start.
        self.collect().await;
        for name in self.state.models.keys().cloned().collect::<Vec<_>>() {
            self.handle(&name, Event::Restarted).await;
        }
        let mut retry = tokio::time::interval(RETRY);
        loop {
            self.publish();
            tokio::select! {
                () = stop.cancelled() => break,
                order = orders.recv() => match order {
                    Some(order) => self.follow(order).await,
                    None => break,
                },
                Some(outcome) = self.jobs.next() => self.conclude(outcome).await,
                _ = retry.tick(), if self.unwritten => self.write().await,
            }
        }
        for deployment in self.state.models.values_mut() {
            *deployment = step(deployment.clone(), Event::Stopping).0;
        }
        self.write().await;
    }

    async fn conclude(&mut self, outcome: Outcome) {
        let Outcome { name, event, found } = outcome;
        match (&event, found) {
            (Event::Fetched(digest), Found::Transfer(transfer)) => {
                self.transfers.insert(name.clone(), (*digest, transfer));
                self.handle(&name, event).await;
            }
            (Event::Verified(_), Found::Verified(bundle)) => {
                self.verified.insert(name.clone(), *bundle);
                self.handle(&name, event).await;
            }
            (_, Found::Turn(permit)) => self.take_turn(&name, event, permit).await,
            (_, Found::Proven(proven, proof_ms)) => {
                if let Some((of, transfer)) = self.transfers.get_mut(&name)
                    && *of == proven.facts.digest
                {
                    transfer.proof_ms = proof_ms;
                }
                self.install(&name, event, *proven).await;
            }
            _ => self.handle(&name, event).await,
        }
    }

    /// One step: decide, write, do.
    async fn handle(&mut self, name: &ModelName, event: Event) {
        // What has stalled is tried again, but not at once.
        let pause = match &event {
            Event::Stalled(..) | Event::RestoreStalled(..) => self.pause(name),
            _ => {
                self.stalled.remove(name);
                Duration::ZERO
            }
        };
        let Some(effects) = self.decide(name, event) else { return };
        self.write().await;
        self.perform(name, effects, pause, None).await;
    }

    /// How long a model that has stalled waits.
    fn pause(&mut self, name: &ModelName) -> Duration {
        let times = self.stalled.entry(name.clone()).or_default();
        let doubled = RETRY.saturating_mul(1 << (*times).min(6)).min(LONGEST_RETRY);
        *times = times.saturating_add(1);
        let source = self.state.models.get(name).map(|deployment| &deployment.target.source);
        if matches!(source, Some(Source::Https(_))) { doubled } else { RETRY }
    }

    /// A model's turn to be loaded: what is remembered now is what a crash will be judged by.
    async fn take_turn(&mut self, name: &ModelName, event: Event, permit: OwnedSemaphorePermit) {
        let Some(before) = self.state.models.get(name).cloned() else { return };
        let Some(effects) = self.decide(name, event) else { return };
        self.write().await;
        if self.unwritten && effects.iter().any(|effect| matches!(effect, Effect::Prove(_))) {
            // Without the record a model that kills the agent would do so for ever.
            let digest = before.target.digest;
            self.state.models.insert(name.clone(), before);
            self.handle(name, Event::Stalled(digest, "the device's disk can't be written".to_owned())).await;
            return;
        }
        self.perform(name, effects, Duration::ZERO, Some(permit)).await;
    }

    /// A version is loaded and proven: it serves, if it is still wanted.
    async fn install(&mut self, name: &ModelName, event: Event, proven: Proven) {
        let digest = proven.facts.digest;
        let is_wanted = self.state.models.get(name).is_some_and(|state| match &event {
            Event::Proved(_) => state.expects(Phase::Proving, digest),
            _ => state.serves(digest),
        });
        let Some(effects) = self.decide(name, event) else { return };
        self.write().await;
        if is_wanted {
            self.swap(name, proven).await;
        }
        self.perform(name, effects, Duration::ZERO, None).await;
    }

    fn decide(&mut self, name: &ModelName, event: Event) -> Option<Vec<Effect>> {
        let before = self.state.models.get(name)?.clone();
        let (after, effects) = step(before.clone(), event);
        if after.phase != before.phase || after.why != before.why {
            let why = after.why.as_deref().unwrap_or_default();
            tracing::info!(model = %name, version = after.target.version, phase = ?after.phase, why, "deployment");
        }
        self.unwritten |= after != before;
        self.state.models.insert(name.clone(), after);
        Some(effects)
    }

    async fn perform(
        &mut self,
        name: &ModelName,
        effects: Vec<Effect>,
        pause: Duration,
        mut permit: Option<OwnedSemaphorePermit>,
    ) {
        self.keep();
        for effect in effects {
            match effect {
                Effect::Abandon => self.jobs.abandon(name, Work::Target),
                Effect::Fetch(target) => {
                    self.jobs.fetch(name, &target, pause, self.parts.fetcher.clone());
                }
                Effect::Verify(target) => {
                    self.jobs.verify(name, &target, pause, self.parts.vault.clone());
                }
                Effect::AwaitProof(target) => self.jobs.await_turn(name, &target, pause, Work::Target),
                Effect::AwaitRestore(target) => self.jobs.await_turn(name, &target, pause, Work::Restore),
                Effect::Prove(target) => self.load(name, target, Work::Target, permit.take()),
                Effect::Restore(target) => self.load(name, target, Work::Restore, permit.take()),
                // Done by `install`, which holds the proven model.
                Effect::Swap(_) => {}
                Effect::Unload => self.unload(name).await,
                Effect::Collect => self.collect().await,
            }
        }
    }

    fn load(&mut self, name: &ModelName, target: Target, work: Work, permit: Option<OwnedSemaphorePermit>) {
        let verified = self.verified.remove(name).filter(|bundle| bundle.digest() == target.digest);
        let loading = Loading {
            name: name.clone(),
            settings: self.parts.settings.with(&target.settings),
            target,
            vault: self.parts.vault.clone(),
            verified,
            onnxruntime: self.parts.onnxruntime.clone(),
            permit,
        };
        self.jobs.load(loading, work);
    }

    async fn swap(&mut self, name: &ModelName, proven: Proven) {
        let scorer = self.parts.scorer.clone();
        let digest = proven.facts.digest;
        match blocking(move || scorer.swap(proven)).await {
            Ok(Ok(swapped)) => {
                if let Some((of, transfer)) = self.transfers.get_mut(name)
                    && *of == digest
                {
                    // At least 1: 0 would read as "not yet".
                    transfer.swap_us = u64::try_from(swapped.as_micros()).unwrap_or(u64::MAX).max(1);
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

    /// Tells the vault what is in use.
    fn keep(&self) {
        self.parts.vault.keep(self.state.models.values().flat_map(Deployment::kept).collect());
    }

    async fn collect(&self) {
        let vault = self.parts.vault.clone();
        match blocking(move || vault.collect()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "what is in no use could not be removed"),
            Err(error) => tracing::error!(error, "collecting failed"),
        }
    }

    /// Writes the state. Where that fails, what serves goes on, and it is tried again.
    async fn write(&mut self) {
        let (path, state) = (self.parts.state.clone(), self.state.clone());
        let written =
            blocking(move || state.write(&path)).await.unwrap_or_else(|why| Err(std::io::Error::other(why)));
        self.unwritten = written.is_err();
        if let Err(error) = written {
            let path = self.parts.state.display();
            tracing::error!(%path, %error, retry_in = ?RETRY, "the deployments' state could not be written");
        }
    }

    fn publish(&mut self) {
        // Once all is loaded it stays so: a later rollback has a version that serves meanwhile.
        self.restored |= !self.jobs.is_restoring();
        let status = Status {
            revision: self.state.revision,
            collect: self.state.collect,
            models: self.state.models.iter().map(|(name, state)| self.describe(name, state)).collect(),
            restored: self.restored,
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
