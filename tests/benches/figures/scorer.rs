//! What the queue, the hand-over to a worker and back, and the counters cost over the bare engine.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::name::ModelName;
use e2e::data::MODEL;
use e2e::process::Failure;
use edgewise_agent::deploy::prove::prove;
use edgewise_agent::scorer::{Live, Scorer};
use edgewise_agent::settings::Settings;
use edgewise_agent::vault::Verified;
use engine::{LoadError, LoadOptions, Tensors};

use crate::measure::{Unit, compare, in_turns, micros, skipped, timed};
use crate::sample;

/// Turns of so many scores: 4,000 in all, ten seconds even with 2 ms each.
const TURNS: usize = 20;
/// See [`TURNS`].
const SCORES: usize = 50;

/// Far beyond any score, so that only its handling is measured.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn measure(_: &Path) -> Result<(), Failure> {
    for options in sample::engines() {
        let figure = format!("score through the queue, {}", options.provider);
        match sample::load(&options)? {
            Ok(bare) => against(&figure, bare, &options)?,
            Err(why @ LoadError::ProviderUnavailable { .. }) => skipped(&figure, &why.to_string()),
            Err(why) => return Err(why.to_string()),
        }
    }
    Ok(())
}

fn against(figure: &str, mut bare: engine::Loaded, options: &LoadOptions) -> Result<(), Failure> {
    let peer = format!("{} {} called directly", bare.engine, bare.engine_version);
    let scorer = Scorer::default();
    let live = serve(&scorer, options)?;
    // As the agent runs it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let inputs = sample::inputs()?;
    let ours = || {
        // On a thread of the runtime, as a request is; the calling thread only waits for the turn to end.
        let turn = runtime.spawn(through_the_queue(live.clone(), inputs.clone()));
        runtime.block_on(turn).map_err(|error| error.to_string())?
    };
    let direct = || timed(SCORES, || bare.model.score(&inputs).map(drop).map_err(|error| error.to_string()));
    compare(figure, Unit::Microseconds, &peer, in_turns(TURNS, ours, direct)?);
    drop(live);
    scorer.drain();
    Ok(())
}

async fn through_the_queue(live: Arc<Live>, inputs: Tensors) -> Result<Vec<f64>, Failure> {
    let mut took = Vec::with_capacity(SCORES);
    for _ in 0..SCORES {
        let inputs = inputs.clone();
        let begun = Instant::now();
        live.score(inputs, TIMEOUT).await.map_err(|error| error.to_string())?;
        took.push(micros(begun.elapsed()));
    }
    Ok(took)
}

fn serve(scorer: &Scorer, options: &LoadOptions) -> Result<Arc<Live>, Failure> {
    let bundle = Verified::local(&sample::bundle()).map_err(|error| error.to_string())?;
    let name = MODEL.parse::<ModelName>().map_err(|error| format!("{MODEL}: {error}"))?;
    let settings = Settings {
        provider: options.provider,
        threads: 1,
        instances: 1,
        queue: 64,
        batching: Default::default(),
        tuning: Default::default(),
        collect: None,
    };
    let proven = prove(&bundle, &name, sample::VERSION, &settings, options.onnxruntime.clone())
        .map_err(|error| error.to_string())?;
    scorer.swap(proven).map_err(|error| error.to_string())?;
    scorer.get(MODEL).ok_or_else(|| format!("{MODEL} does not serve"))
}
