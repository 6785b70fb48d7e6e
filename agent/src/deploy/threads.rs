//! How many threads one score of a model gets, where nobody has said it: as measured here.
//!
//! Two threads make a model of a few microseconds slower, for they wait for each other longer than they compute, and one of
//! a few milliseconds nearly twice as fast. ONNX Runtime alone has a choice: tract computes on the thread that asks.

use std::time::{Duration, Instant};

use engine::{Engine, LoadError, LoadOptions, Loaded, Provider, ScoreError, Tensors};

use crate::settings::Settings;

/// What takes less on one thread is left there.
const SHORT: Duration = Duration::from_millis(1);

/// Scores of which the quickest is what a model takes, at the least: others are slowed by what else the machine does.
const TRIES: usize = 5;

/// How long a machine that is busy is measured, for it needs a moment in which all cores are free.
const LONGEST: Duration = Duration::from_millis(100);

/// How long it is loaded anew with more threads until they pay, once at the least: where a system starts them on one core, it may
/// leave them there for longer than can be waited here (squeezenet on two idle cores: one time in six). What is slow to load is
/// slow enough for the system to spread its threads.
const PATIENCE: Duration = Duration::from_millis(400);

/// A model takes up to so many times as much while it is loaded as it does afterwards (measured: 1.6).
const WHILE_LOADED: u64 = 2;

/// More threads than one must save this part of the time, one in eight, for they take it from others.
const WORTH: u32 = 8;

/// Loads a model with as many threads as are good for it, and says with how many. `inputs` are what it is measured on;
/// `room` says whether so many bytes more fit into the memory, where it is held twice meanwhile.
pub(super) fn load(
    onnx: &[u8],
    options: &LoadOptions,
    settings: &Settings,
    inputs: Option<&Tensors>,
    room: impl Fn(u64) -> bool,
) -> Result<(Loaded, u32), LoadError> {
    let with = |threads: usize| engine::load(onnx, &LoadOptions { threads, ..options.clone() });
    if settings.threads > 0 {
        return Ok((with(settings.threads as usize)?, settings.threads));
    }
    let mut alone = with(1)?;
    // By affinity and by the limit of the container or service.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let each = cores / (settings.instances.max(1) as usize);
    let has_choice = alone.engine == Engine::OnnxRuntime && alone.provider == Provider::Cpu;
    let made_up = alone.model.signature().zeros();
    let (true, true, Some(inputs)) = (has_choice, each > 1, inputs.or(made_up.as_ref())) else {
        return Ok((alone, 1));
    };
    // What can't score these inputs is not measured; whether it is right is not asked here.
    let Ok([took]) = quickest([&mut alone], inputs, |_| true) else { return Ok((alone, 1)) };
    // One slow score says little of a model, so the quickest of all that were made is compared.
    let pays = |[again, less]: [Duration; 2]| {
        let took = took.min(again);
        less + took / WORTH < took
    };
    let begun = Instant::now();
    while took >= SHORT && begun.elapsed() < PATIENCE && room(alone.memory_bytes.saturating_mul(WHILE_LOADED))
    {
        let Ok(mut together) = with(each) else { break };
        match quickest([&mut alone, &mut together], inputs, pays) {
            Ok(measured) if pays(measured) => {
                together.memory_bytes = alone.memory_bytes;
                return Ok((together, u32::try_from(each).unwrap_or(u32::MAX)));
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    Ok((alone, 1))
}

/// The quickest score of each, in turns, so that what else the machine does slows all. Ends once `is_clear` says so of them,
/// or after [`LONGEST`].
fn quickest<const N: usize>(
    mut models: [&mut Loaded; N],
    inputs: &Tensors,
    is_clear: impl Fn([Duration; N]) -> bool,
) -> Result<[Duration; N], ScoreError> {
    // The first pays for lazy set-up.
    models.iter_mut().try_for_each(|loaded| loaded.model.score(inputs).map(drop))?;
    let (begun, mut turns) = (Instant::now(), 0);
    let mut quickest = [Duration::MAX; N];
    while turns < TRIES || (!is_clear(quickest) && begun.elapsed() < LONGEST) {
        for (loaded, quickest) in models.iter_mut().zip(&mut quickest) {
            let begun = Instant::now();
            loaded.model.score(inputs)?;
            *quickest = begun.elapsed().min(*quickest);
        }
        turns += 1;
        if begun.elapsed() > LONGEST * 2 {
            break;
        }
    }
    Ok(quickest)
}
