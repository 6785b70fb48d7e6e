//! The live models: who answers for a model now, and how a request gets to it.
//!
//! Invariants:
//! - Only a [`Proven`] model can go live, and only `deploy` makes one.
//! - A swap drops no request: the version before keeps its workers until its queue is empty, and requests that
//!   come after the swap go to the new one.
//! - A full queue refuses at once ([`ScoreRefused::Busy`]); nothing waits without a bound.
//! - Scoring runs on threads of its own. Only what is surely over in [`QUICK`] may run where the request came in: to wake
//!   another thread and wait for it takes longer than that.

mod counters;
mod instances;
mod pace;
mod queue;
mod worker;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cloud_sync::digest::Digest;
use cloud_sync::name::ModelName;
use engine::{Model, ScoreError, Signature, Tensors};
use tokio::sync::oneshot;

pub use self::counters::Counters;
use self::instances::Instances;
use self::pace::Pace;
pub use self::pace::QUICK;
use self::queue::{Job, Queue};
use self::worker::{Worker, Workshop};
use crate::settings::Settings;

/// Longest time that [`Scorer::drain`] and a swap give the workers of a version to empty their queue.
const DRAIN: Duration = Duration::from_secs(5);

/// A version that has passed its proof on this device and may serve.
pub struct Proven {
    /// What callers may know of it.
    pub facts: Facts,
    /// One loaded model for each worker.
    pub instances: Vec<Box<dyn Model>>,
}

/// What is known of a version once it has been proven here.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The model.
    pub name: ModelName,
    /// Its version; 0 for a bundle that was given with `--local` and has none.
    pub version: u64,
    /// The digest of its bundle.
    pub digest: Digest,
    /// What it takes and gives.
    pub signature: Arc<Signature>,
    /// Names of its classes, in order; empty where the bundle has none.
    pub labels: Vec<String>,
    /// The engine that runs it, with its version.
    pub engine: String,
    /// The provider that really runs it.
    pub provider: String,
    /// What the engine has to say about that choice.
    pub why: Option<String>,
    /// Memory that loading it took, in bytes, as measured here.
    pub memory_bytes: u64,
    /// How it is run.
    pub settings: Settings,
}

/// A version that serves.
pub struct Live {
    /// What callers may know of it.
    pub facts: Facts,
    /// What it has done.
    pub counters: Arc<Counters>,
    queue: SyncSender<Job>,
    instances: Arc<Instances>,
    pace: Pace,
    /// Hangs up once every worker has ended.
    finished: Mutex<Receiver<()>>,
}

/// The models that serve. Cheap to clone.
#[derive(Clone, Default)]
pub struct Scorer {
    live: Arc<RwLock<BTreeMap<ModelName, Arc<Live>>>>,
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Scored {
    /// The inputs, given back.
    pub inputs: Arc<Tensors>,
    /// The outputs, in the order of the signature.
    pub outputs: Arc<Tensors>,
    /// Time in the queue.
    pub queued: Duration,
    /// Time in the engine.
    pub computed: Duration,
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScoreRefused {
    /// No such model serves here.
    #[error("model {0} is not served here{known}", known = known(.1))]
    UnknownModel(String, Vec<String>),
    /// The model serves, in another version.
    #[error("model {name} is served here in version {active}, not {asked}")]
    UnknownVersion {
        /// The model.
        name: ModelName,
        /// The version that was asked for.
        asked: String,
        /// The version that serves.
        active: u64,
    },
    /// The queue is full.
    #[error("model {0} is busy: {1} requests are waiting; try again, or raise its queue or instances")]
    Busy(ModelName, u32),
    /// The request ran out of time.
    #[error("scoring timeout after {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The inputs are wrong, or the engine failed on them.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// The engine panicked on this request.
    #[error("the engine of model {0} crashed on this request")]
    Crashed(ModelName),
    /// The agent or the model is on its way out.
    #[error("model {0} is being stopped")]
    Stopping(ModelName),
}

/// Why no model answers where none is named.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NoChoice {
    /// The preferred one does not serve.
    #[error(transparent)]
    Refused(#[from] ScoreRefused),
    /// None serves.
    #[error("no model is served here yet")]
    None,
    /// Several serve.
    #[error(
        "several models are served here: {}; set http.score_model in the agent's configuration, or name one",
        .0.iter().map(ModelName::as_str).collect::<Vec<_>>().join(", ")
    )]
    Several(Vec<ModelName>),
}

impl Scorer {
    /// The version that answers for `name` now.
    pub fn get(&self, name: &str) -> Option<Arc<Live>> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.iter().find(|(known, _)| known.as_str() == name).map(|(_, live)| live.clone())
    }

    /// Every version that answers now, by name.
    pub fn all(&self) -> Vec<Arc<Live>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The version that answers for `name`, if it is `version` or none is asked for.
    pub fn find(&self, name: &str, version: Option<&str>) -> Result<Arc<Live>, ScoreRefused> {
        let live = self.get(name).ok_or_else(|| {
            let known = self.all().iter().map(|live| live.facts.name.to_string()).collect();
            ScoreRefused::UnknownModel(cloud_sync::limits::bounded_text(name), known)
        })?;
        match version {
            Some(asked) if asked != live.facts.version.to_string() => Err(ScoreRefused::UnknownVersion {
                name: live.facts.name.clone(),
                asked: cloud_sync::limits::bounded_text(asked),
                active: live.facts.version,
            }),
            _ => Ok(live),
        }
    }

    /// The version that answers where no model is named: that of the `preferred` model, else the only one.
    pub fn choose(&self, preferred: Option<&ModelName>) -> Result<Arc<Live>, NoChoice> {
        if let Some(name) = preferred {
            return Ok(self.find(name.as_str(), None)?);
        }
        let all = self.all();
        match all.as_slice() {
            [] => Err(NoChoice::None),
            [only] => Ok(only.clone()),
            several => Err(NoChoice::Several(several.iter().map(|live| live.facts.name.clone()).collect())),
        }
    }

    /// Puts a proven version in place of the one that serves, which finishes what it has. Blocking: returns
    /// when the version before is out of memory, or after [`DRAIN`]; the answer is how long a new request could
    /// have had to wait.
    pub fn swap(&self, proven: Proven) -> std::io::Result<Duration> {
        let live = Arc::new(Live::start(proven)?);
        let begun = Instant::now();
        let before = {
            let mut all = self.live.write().unwrap_or_else(PoisonError::into_inner);
            all.insert(live.facts.name.clone(), live)
        };
        let swapped = begun.elapsed();
        if let Some(before) = before {
            before.retire();
        }
        Ok(swapped)
    }

    /// Stops serving a model. Blocking, as [`Scorer::swap`].
    pub fn remove(&self, name: &ModelName) {
        let before = self.live.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(before) = before {
            before.retire();
        }
    }

    /// Stops serving everything, once what is queued is scored. Blocking, as [`Scorer::swap`].
    pub fn drain(&self) {
        let all = std::mem::take(&mut *self.live.write().unwrap_or_else(PoisonError::into_inner));
        for live in all.into_values() {
            live.retire();
        }
    }
}

impl Live {
    /// Scores `inputs` within `timeout`.
    pub async fn score(&self, inputs: Tensors, timeout: Duration) -> Result<Scored, ScoreRefused> {
        if let Err(error) = self.facts.signature.check(&inputs) {
            self.counters.invalid();
            return Err(ScoreError::from(error).into());
        }
        let inputs = Arc::new(inputs);
        let pending = self.counters.pending();
        let begun = Instant::now();
        let result = match self.score_here(&inputs) {
            Some(result) => result,
            None => self.score_apart(inputs, timeout).await,
        };
        if let Ok(scored) = &result {
            self.pace.learn(&scored.inputs, scored.computed);
        }
        pending.end(&self.facts.signature, &result, begun.elapsed());
        result
    }

    /// Scores on this thread, where that is quick, an instance is free, and nobody has asked for batches.
    fn score_here(&self, inputs: &Arc<Tensors>) -> Option<Result<Scored, ScoreRefused>> {
        if self.facts.settings.batching.is_on() {
            return None;
        }
        let patience = self.pace.expected(inputs).filter(|expected| *expected <= QUICK)?;
        let begun = Instant::now();
        let mut instance = self.instances.take_within(patience)?;
        Some(instance.score(&self.facts.name, inputs, begun.elapsed()))
    }

    /// Scores on a worker's thread.
    async fn score_apart(&self, inputs: Arc<Tensors>, timeout: Duration) -> Result<Scored, ScoreRefused> {
        let name = || self.facts.name.clone();
        let (answer, result) = oneshot::channel();
        let job = Job { inputs, enqueued: Instant::now(), answer };
        match self.queue.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                return Err(ScoreRefused::Busy(name(), self.facts.settings.queue));
            }
            Err(TrySendError::Disconnected(_)) => return Err(ScoreRefused::Stopping(name())),
        }
        match tokio::time::timeout(timeout, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ScoreRefused::Stopping(name())),
            Err(_) => Err(ScoreRefused::Timeout(timeout)),
        }
    }

    fn start(proven: Proven) -> std::io::Result<Self> {
        let Proven { facts, instances } = proven;
        let (queue, jobs) = Queue::new(facts.settings.queue);
        let (working, finished) = sync_channel(0);
        let counters = Arc::<Counters>::default();
        let instances = Arc::new(Instances::new(instances, counters.clone()));
        let shop = Arc::new(Workshop {
            name: facts.name.clone(),
            instances: instances.clone(),
            queue: jobs,
            counters: counters.clone(),
            batching: facts.settings.batching.clone(),
            does_not_batch: AtomicBool::new(false),
        });
        for place in 0..instances.len() {
            let worker = Worker { shop: shop.clone(), place, _working: working.clone() };
            let name = format!("{}:{}", facts.name, facts.version);
            std::thread::Builder::new().name(name).spawn(move || worker.run())?;
        }
        let finished = Mutex::new(finished);
        Ok(Self { facts, counters, queue, instances, pace: Pace::default(), finished })
    }

    /// Lets the workers finish what is queued. They end when the last caller that found this version has gone.
    fn retire(self: Arc<Self>) {
        let (_, placeholder) = sync_channel(0);
        let finished = {
            let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *finished, placeholder)
        };
        let name = format!("{}:{}", self.facts.name, self.facts.version);
        drop(self);
        if finished.recv_timeout(DRAIN) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(model = %name, "still scoring {DRAIN:?} after it was replaced");
        }
    }
}

/// The rows of a request: the batch dimension where the model has one, else 1.
pub fn rows(signature: &Signature, inputs: &Tensors) -> u64 {
    let first = || inputs.iter().next().and_then(|(_, tensor)| tensor.shape().first());
    if signature.batch_dimension() { first().map_or(1, |rows| *rows as u64) } else { 1 }
}

fn known(names: &[String]) -> String {
    if names.is_empty() { "; none is".to_owned() } else { format!("; these are: {}", names.join(", ")) }
}
