//! How a version comes to serve: a pure state machine, one per model.
//!
//! `Fetching → Verifying → Proving → Active`, with `Rejected` and `RolledBack` as the other ends.
//!
//! Invariants:
//! - [`step`] decides and does nothing; [`driver`] writes the new state durably and only then performs the
//!   effects, so a power cut finds the phase whose effect may have begun, and resumes instead of guessing.
//! - A version serves only after its proof. The version before serves until then, and is kept to roll back to.
//! - A version that was being proven when the process died is rejected, not tried for ever. The same holds for
//!   a version that serves and can't be loaded any more: after [`MAX_RESTORES`] deaths the one before it serves.
//!   Both are counted from the moment a model's turn to be loaded has come, so none pays for its neighbour.
//! - What may pass (a disk that does not answer) is tried again; only what is the version's fault rejects it.
//! - Effects answer with the digest that they were for; an answer for another target is ignored.

mod batches;
pub mod driver;
mod jobs;
pub mod prove;
pub mod state;
mod threads;

use cloud_sync::contract::{DesiredModel, ModelSettings, Phase};
use cloud_sync::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::fetch::Source;

/// How often the process may die while it loads the serving version before that version is given up: once can
/// be a power cut, three times in a row is the model.
pub const MAX_RESTORES: u32 = 3;

/// How often damaged bytes are fetched anew before the disk is taken to be the reason.
pub const MAX_REPAIRS: u32 = 5;

/// A version to serve, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// The version.
    pub version: u64,
    /// The digest of its bundle.
    pub digest: Digest,
    /// The size of its bundle in bytes, where that was said.
    pub size: Option<u64>,
    /// Where its bundle comes from.
    #[serde(default)]
    pub source: Source,
    /// How to run it.
    pub settings: ModelSettings,
    /// Which deploy this is: the same version may be tried again.
    #[serde(default)]
    pub deployment: u64,
}

/// What is known of one model on this device; all of it is durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    /// What the cloud wants.
    pub target: Target,
    /// How far that is.
    pub phase: Phase,
    /// Why it is there.
    pub why: Option<String>,
    /// What serves, or shall be loaded to serve after a restart.
    pub active: Option<Target>,
    /// What served before and is kept on the disk.
    pub previous: Option<Target>,
    /// Loads of `active` that have begun since the last one that ended.
    pub restores: u32,
    /// Repairs of the target's bytes.
    pub repairs: u32,
}

/// What happened to a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The cloud wants this.
    Desired(Target),
    /// All bytes of the bundle are on the disk.
    Fetched(Digest),
    /// What was under way for the target can't go on now; it is tried again.
    Stalled(Digest, String),
    /// The bundle can never be taken here.
    FetchRefused(Digest, String),
    /// Every byte is right.
    Verified(Digest),
    /// Some bytes are missing or damaged.
    Incomplete(Digest),
    /// Every byte is right, and the bundle is wrong.
    Unusable(Digest, String),
    /// It is this version's turn to be loaded and proven.
    ProofTurn(Digest),
    /// The version has passed its proof and is loaded.
    Proved(Digest),
    /// The version has failed its proof.
    ProofFailed(Digest, String),
    /// The process has begun; this is what was on the disk.
    Restarted,
    /// It is this version's turn to be loaded again.
    RestoreTurn(Digest),
    /// The serving version is loaded again.
    Restored(Digest),
    /// The serving version can't be loaded now; it is tried again.
    RestoreStalled(Digest, String),
    /// The serving version can't be loaded any more.
    RestoreFailed(Digest, String),
    /// Bytes of the serving version were lost or damaged on the disk.
    RestoreIncomplete(Digest),
    /// The operator wants the version before.
    Rollback,
    /// The agent is being stopped: what is being loaded did not crash it.
    Stopping,
}

/// What is to be done about it, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Stop whatever is under way for the target.
    Abandon,
    /// Pull the target's bytes.
    Fetch(Target),
    /// Compare them.
    Verify(Target),
    /// Wait for its turn to be loaded: one model at a time, for the memory's sake.
    AwaitProof(Target),
    /// Load and prove it.
    Prove(Target),
    /// Let the proven version serve.
    Swap(Target),
    /// Wait for its turn to be loaded again.
    AwaitRestore(Target),
    /// Load a version that has been proven before, and let it serve.
    Restore(Target),
    /// Stop serving the model.
    Unload,
    /// Remove from the disk what is in no use.
    Collect,
}

impl Deployment {
    /// A model that has just come to be wanted.
    pub fn new(target: Target) -> (Self, Vec<Effect>) {
        let effects = vec![Effect::Fetch(target.clone())];
        let phase = Phase::Fetching;
        (Self { target, phase, why: None, active: None, previous: None, restores: 0, repairs: 0 }, effects)
    }

    /// The bundles that must stay on the disk.
    pub fn kept(&self) -> impl Iterator<Item = Digest> {
        let target = (self.phase != Phase::Rejected).then_some(&self.target);
        [target, self.active.as_ref(), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .map(|target| target.digest)
    }
}

impl From<&DesiredModel> for Target {
    fn from(model: &DesiredModel) -> Self {
        let settings = model.settings.clone();
        let (version, deployment) = (model.version, model.deployment);
        let (digest, size) = (model.digest, Some(model.size));
        Self { version, digest, size, source: Source::Registry, settings, deployment }
    }
}

impl Target {
    /// Whether this is that version, run alike: the same bytes, whichever deploy they came with and wherever from.
    fn is(&self, other: &Self) -> bool {
        (self.version, self.digest, &self.settings) == (other.version, other.digest, &other.settings)
    }

    /// Whether this is that same deploy of it.
    fn repeats(&self, other: &Self) -> bool {
        self.is(other) && self.deployment == other.deployment
    }
}

/// The next state, and what is to be done once it is durable.
pub fn step(mut state: Deployment, event: Event) -> (Deployment, Vec<Effect>) {
    use Effect::{Abandon, AwaitProof, AwaitRestore, Collect, Fetch, Prove, Restore, Swap, Verify};
    let effects = match event {
        Event::Desired(target) if target == state.target => vec![],
        // Its bytes lie elsewhere now, as behind a renewed link: nobody has asked for it again.
        Event::Desired(target) if state.phase == Phase::RolledBack && target.repeats(&state.target) => {
            state.target = target;
            vec![]
        }
        Event::Desired(target) => {
            state.target = target;
            state.repairs = 0;
            if state.active.as_ref().is_some_and(|active| active.is(&state.target)) {
                state.active = Some(state.target.clone());
                state.enter(Phase::Active, None);
                vec![Abandon, Collect]
            } else {
                state.enter(Phase::Fetching, None);
                vec![Abandon, Fetch(state.target.clone())]
            }
        }
        Event::Fetched(digest) if state.expects(Phase::Fetching, digest) => {
            state.enter(Phase::Verifying, None);
            vec![Verify(state.target.clone())]
        }
        Event::Stalled(digest, why) if state.target.digest == digest => match state.phase {
            Phase::Fetching => {
                state.why = Some(why);
                vec![Fetch(state.target.clone())]
            }
            Phase::Verifying | Phase::Proving => {
                state.enter(Phase::Verifying, Some(why));
                vec![Verify(state.target.clone())]
            }
            Phase::Active | Phase::Rejected | Phase::RolledBack => vec![],
        },
        Event::FetchRefused(digest, why) if state.expects(Phase::Fetching, digest) => state.reject(why),
        Event::Verified(digest) if state.expects(Phase::Verifying, digest) => {
            vec![AwaitProof(state.target.clone())]
        }
        Event::Incomplete(digest) if state.expects(Phase::Verifying, digest) => {
            state.repairs += 1;
            if state.repairs > MAX_REPAIRS {
                state.reject(format!("its bytes were damaged on this disk {MAX_REPAIRS} times"))
            } else {
                state.enter(Phase::Fetching, None);
                vec![Fetch(state.target.clone())]
            }
        }
        Event::Unusable(digest, why) if state.expects(Phase::Verifying, digest) => state.reject(why),
        Event::ProofTurn(digest) if state.expects(Phase::Verifying, digest) => {
            state.enter(Phase::Proving, None);
            vec![Prove(state.target.clone())]
        }
        Event::ProofFailed(digest, why) if state.expects(Phase::Proving, digest) => state.reject(why),
        Event::Proved(digest) if state.expects(Phase::Proving, digest) => {
            let before = state.active.replace(state.target.clone());
            // A version that is only run with other settings is no version to roll back to.
            if before.as_ref().is_some_and(|before| before.version != state.target.version) {
                state.previous = before;
            }
            state.restores = 0;
            state.enter(Phase::Active, None);
            vec![Swap(state.target.clone()), Collect]
        }
        Event::Restarted => return restarted(state),
        Event::RestoreTurn(digest) if state.serves(digest) => {
            state.restores += 1;
            state.active.iter().cloned().map(Restore).collect()
        }
        Event::Restored(digest) if state.serves(digest) => {
            state.restores = 0;
            vec![]
        }
        Event::RestoreStalled(digest, why) if state.serves(digest) => {
            state.restores = 0;
            state.why = Some(why);
            state.active.iter().cloned().map(AwaitRestore).collect()
        }
        Event::RestoreFailed(digest, why) if state.serves(digest) => return give_up_active(state, why),
        Event::RestoreIncomplete(digest) if state.serves(digest) => return repair_active(state),
        Event::Rollback => match state.previous.take() {
            // The version that is left behind is kept: should the one before not load, it serves on.
            Some(previous) => {
                state.previous = state.active.replace(previous.clone());
                state.enter(Phase::RolledBack, Some("rolled back by command".to_owned()));
                vec![Abandon, AwaitRestore(previous), Collect]
            }
            None => vec![],
        },
        Event::Stopping => {
            if state.phase == Phase::Proving {
                state.enter(Phase::Verifying, None);
            }
            state.restores = state.restores.saturating_sub(1);
            vec![]
        }
        // An answer that came too late, for a target that is no longer wanted.
        _ => vec![],
    };
    (state, effects)
}

impl Deployment {
    fn enter(&mut self, phase: Phase, why: Option<String>) {
        self.phase = phase;
        self.why = why;
    }

    fn expects(&self, phase: Phase, digest: Digest) -> bool {
        self.phase == phase && self.target.digest == digest
    }

    fn serves(&self, digest: Digest) -> bool {
        self.active.as_ref().is_some_and(|active| active.digest == digest)
    }

    fn reject(&mut self, why: String) -> Vec<Effect> {
        self.enter(Phase::Rejected, Some(why));
        vec![Effect::Collect]
    }
}

fn restarted(mut state: Deployment) -> (Deployment, Vec<Effect>) {
    let mut effects = Vec::new();
    if let Some(active) = state.active.clone() {
        if state.restores >= MAX_RESTORES {
            let why =
                format!("the agent died {MAX_RESTORES} times while it loaded version {}", active.version);
            (state, effects) = give_up_active(state, why);
        } else {
            effects.push(Effect::AwaitRestore(active));
        }
    }
    match state.phase {
        // Giving up may have begun a fetch already.
        Phase::Fetching if !effects.iter().any(|effect| matches!(effect, Effect::Fetch(_))) => {
            effects.push(Effect::Fetch(state.target.clone()));
        }
        Phase::Verifying => effects.push(Effect::Verify(state.target.clone())),
        Phase::Proving => effects.extend(state.reject("the agent died while it was being proven".to_owned())),
        Phase::Fetching | Phase::Active | Phase::Rejected | Phase::RolledBack => {}
    }
    (state, effects)
}

/// The serving version can't serve any more: the other one that is kept does, or what is wanted is brought anew.
fn give_up_active(mut state: Deployment, why: String) -> (Deployment, Vec<Effect>) {
    let given_up = state.active.take();
    state.active = state.previous.take();
    state.restores = 0;
    let was_wanted = given_up.is_some_and(|given_up| given_up == state.target);
    match state.active.clone() {
        Some(other) => {
            if was_wanted {
                state.enter(Phase::RolledBack, Some(why));
            } else if other == state.target && state.phase == Phase::RolledBack {
                state.enter(Phase::Active, Some(why));
            }
            (state, vec![Effect::AwaitRestore(other), Effect::Collect])
        }
        None if was_wanted => {
            state.enter(Phase::Rejected, Some(why));
            (state, vec![Effect::Unload, Effect::Collect])
        }
        None if state.phase == Phase::RolledBack => {
            state.enter(Phase::Fetching, Some(why));
            let effects = vec![Effect::Unload, Effect::Fetch(state.target.clone())];
            (state, effects)
        }
        None => (state, vec![Effect::Unload, Effect::Collect]),
    }
}

/// The serving version's bytes are gone: where it is still wanted it is pulled anew, and the other one that is kept
/// serves meanwhile.
fn repair_active(state: Deployment) -> (Deployment, Vec<Effect>) {
    let wanted = state.active.as_ref() == Some(&state.target);
    let why = "its bytes were damaged on this disk".to_owned();
    let (mut state, mut effects) = give_up_active(state, why.clone());
    if wanted {
        state.enter(Phase::Fetching, Some(why));
        effects.retain(|effect| *effect != Effect::Collect);
        effects.push(Effect::Fetch(state.target.clone()));
    }
    (state, effects)
}

#[cfg(test)]
mod tests;
