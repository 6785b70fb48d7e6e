//! The proof: a version is loaded on this device, its golden samples give what they must, and it is warm.
//!
//! Where requests shall be scored together, that is proven, too: it is taken back where a golden sample has another output then.
//!
//! The only place that makes a [`Proven`] version, and so the only way to serve.

use std::path::PathBuf;
use std::sync::Arc;

use cloud_sync::bundle::Accelerator;
use cloud_sync::name::ModelName;
use engine::golden::{self, Golden, Sample};
use engine::{LoadError, LoadOptions, Model, Provider, Tensors, batch};

use super::threads;
use crate::board::{Memory, Root};
use crate::scorer::{Facts, Proven};
use crate::settings::{Batching, Settings};
use crate::vault::{VaultError, Verified};

/// Scores that a version has done before it serves, so that no request pays for lazy set-up.
const WARM_UP: usize = 4;

/// Why a version must not serve here.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// Its files can't be read or are wrong.
    #[error(transparent)]
    Bundle(#[from] VaultError),
    /// No engine loads it as it is wanted.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It is wanted on a GPU and does not run on one.
    #[error("model.toml asks for a GPU, and the model runs on provider {0} here")]
    NoGpu(Provider),
    /// It does not fit into the memory that is left now: loading it could end the process.
    #[error(
        "its ONNX file has {needed} bytes and {available} bytes of memory are left here; waiting for more"
    )]
    NoMemory {
        /// Bytes of the file.
        needed: u64,
        /// Bytes that could be had.
        available: u64,
    },
    /// It will never fit.
    #[error(
        "its ONNX file has {needed} bytes, more than all memory that the agent may use, {most} bytes: raise the limit \
         of the service or the container, or deploy a smaller model"
    )]
    TooLarge {
        /// Bytes of the file.
        needed: u64,
        /// Bytes of memory and swap space.
        most: u64,
    },
    /// Its golden samples are no samples.
    #[error("golden samples: {0}")]
    Golden(#[from] golden::GoldenError),
}

/// Loads and proves a version. Blocking; takes as long as the model does.
pub fn prove(
    bundle: &Verified,
    name: &ModelName,
    version: u64,
    settings: &Settings,
    onnxruntime: Option<PathBuf>,
) -> Result<Proven, ProofError> {
    check_memory(bundle.onnx_bytes()?, &Memory::read(&Root::new("/")))?;
    let onnx = bundle.onnx()?;
    let options = LoadOptions {
        provider: settings.provider,
        onnxruntime,
        tuning: settings.tuning,
        ..LoadOptions::default()
    };
    let golden = golden(bundle)?;
    // For the model with one thread and with several at once.
    let room = |taken: u64| check_memory(taken, &Memory::read(&Root::new("/"))).is_ok();
    let inputs =
        golden.as_ref().and_then(|(samples, ..)| samples.samples.first()).map(|sample| &sample.inputs);
    let (mut first, threads) = threads::load(&onnx, &options, settings, inputs, room)?;
    let on_gpu = matches!(first.provider, Provider::Cuda | Provider::TensorRt);
    if bundle.description().resources.accelerator == Accelerator::Gpu && !on_gpu {
        return Err(ProofError::NoGpu(first.provider));
    }
    if let Some((samples, rtol, atol)) = &golden {
        golden::check(first.model.as_mut(), samples, *rtol, *atol)?;
    }
    let mut settings = Settings { threads, ..settings.clone() };
    if settings.batching.is_on()
        && let Err(why) = prove_batches(first.model.as_mut(), golden.as_ref(), settings.batching.max_rows)
    {
        tracing::warn!(model = %name, version, "requests are scored alone, whatever max_batch says: {why}");
        settings.batching = Batching::default();
    }

    let signature = Arc::new(first.model.signature().clone());
    let facts = Facts {
        name: name.clone(),
        version,
        digest: bundle.digest(),
        signature,
        labels: bundle.labels()?,
        engine: format!("{} {}", first.engine, first.engine_version),
        provider: first.provider.to_string(),
        why: first.why.clone(),
        memory_bytes: first.memory_bytes,
        settings,
    };
    // The others run on what the first was proven on, and on nothing else.
    let options = LoadOptions { provider: first.provider, threads: threads as usize, ..options };
    let mut instances = vec![first.model];
    for _ in 1..facts.settings.instances {
        instances.push(engine::load(&onnx, &options)?.model);
    }
    let made_up = facts.signature.zeros();
    if let Some(inputs) = inputs.or(made_up.as_ref()) {
        instances.iter_mut().for_each(|model| warm(model.as_mut(), inputs));
    }
    Ok(Proven { facts, instances })
}

/// Scores until lazy set-up is done. Made-up inputs may be none that the model can score: then it starts cold.
fn warm(model: &mut dyn Model, inputs: &Tensors) {
    if let Err(error) = (0..WARM_UP).try_for_each(|_| model.score(inputs).map(drop)) {
        tracing::debug!("not warmed up: {error}");
    }
}

/// Whether samples that are scored as one, of as many `rows` as fit, have the outputs that they have alone.
fn prove_batches(
    model: &mut dyn Model,
    golden: Option<&(Golden, f64, f64)>,
    rows: u32,
) -> Result<(), String> {
    if !model.signature().batch_dimension() {
        return Err("not all of its inputs and outputs have a free first dimension".to_owned());
    }
    let unproven = || "no two golden samples fit together to prove it by".to_owned();
    let (golden, rtol, atol) = golden.ok_or_else(unproven)?;
    let together = together(golden, rows as usize).ok_or_else(unproven)?;
    golden::check(model, &together, *rtol, *atol)
        .map(drop)
        .map_err(|error| format!("scored together, {error}"))
}

/// Samples as one: those that can be joined with the first, which is taken again where it is the only one.
fn together(golden: &Golden, most: usize) -> Option<Golden> {
    let first = golden.samples.first()?;
    let mut rows = batch::rows(&first.inputs)?;
    let mut samples = vec![first];
    for sample in golden.samples.iter().skip(1).chain([first]) {
        let more = batch::rows(&sample.inputs).filter(|more| rows.saturating_add(*more) <= most);
        if let Some(more) = more.filter(|_| batch::alike(&first.inputs, &sample.inputs)) {
            rows += more;
            samples.push(sample);
        }
    }
    // One by itself proves nothing.
    samples.get(1)?;
    let inputs = batch::join(&samples.iter().map(|sample| &sample.inputs).collect::<Vec<_>>())?;
    let outputs = batch::join(&samples.iter().map(|sample| &sample.outputs).collect::<Vec<_>>())?;
    Some(Golden { samples: vec![Sample { inputs, outputs }] })
}

/// Refuses what surely does not fit: a model takes at least as much memory as its file.
fn check_memory(needed: u64, memory: &Memory) -> Result<(), ProofError> {
    let swap = memory.swap.unwrap_or(0);
    let free_swap = swap.saturating_sub(memory.swap_used.unwrap_or(0));
    let most = memory.usable().map(|usable| usable.saturating_add(swap));
    let available = memory.available.map(|available| available.saturating_add(free_swap));
    match (most, available) {
        (Some(most), _) if needed > most => Err(ProofError::TooLarge { needed, most }),
        (_, Some(available)) if needed > available => Err(ProofError::NoMemory { needed, available }),
        _ => Ok(()),
    }
}

/// The golden samples, where there are any, and their tolerances.
fn golden(bundle: &Verified) -> Result<Option<(Golden, f64, f64)>, ProofError> {
    let Some(section) = &bundle.description().golden else { return Ok(None) };
    let Some(bytes) = bundle.golden()? else { return Ok(None) };
    Ok(Some((golden::parse(&bytes)?, section.rtol, section.atol)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_surely_does_not_fit_is_refused() {
        let memory = Memory {
            total: Some(100),
            available: Some(50),
            swap: Some(20),
            swap_used: Some(15),
            ..Memory::default()
        };
        check_memory(55, &memory).unwrap();
        assert!(matches!(check_memory(56, &memory), Err(ProofError::NoMemory { needed: 56, available: 55 })));
        assert!(matches!(check_memory(120, &memory), Err(ProofError::NoMemory { .. })));
        assert!(matches!(check_memory(121, &memory), Err(ProofError::TooLarge { most: 120, .. })));
        check_memory(u64::MAX, &Memory::default()).unwrap();
    }

    /// Gives each number less a part of what is before it.
    struct Less(engine::Signature, f32);

    impl Model for Less {
        fn signature(&self) -> &engine::Signature {
            &self.0
        }

        fn score(&mut self, inputs: &Tensors) -> Result<Tensors, engine::ScoreError> {
            let mut before = 0.0;
            let numbers = inputs.get("x").unwrap().as_slice::<f32>().unwrap().iter();
            Ok(numbers_of(
                &numbers.map(|x| x - self.1 * std::mem::replace(&mut before, *x)).collect::<Vec<_>>(),
            ))
        }
    }

    fn numbers_of(numbers: &[f32]) -> Tensors {
        [("x", engine::Tensor::from_vec(vec![numbers.len()], numbers.to_vec()).unwrap())]
            .into_iter()
            .collect()
    }

    #[test]
    fn only_a_model_whose_rows_do_not_touch_may_batch() {
        let spec = |length| engine::TensorSpec {
            name: "x".to_owned(),
            data_type: engine::DataType::F32,
            shape: vec![length],
        };
        let signature =
            |length| engine::Signature { inputs: vec![spec(length)], outputs: vec![spec(length)] };
        let sample = |numbers: &[f32]| Sample { inputs: numbers_of(numbers), outputs: numbers_of(numbers) };
        let golden = (Golden { samples: vec![sample(&[1.0]), sample(&[2.0]), sample(&[3.0])] }, 0.0, 1e-6);
        assert_eq!(prove_batches(&mut Less(signature(None), 0.0), Some(&golden), 8), Ok(()));
        let why = prove_batches(&mut Less(signature(None), 0.5), Some(&golden), 2).unwrap_err();
        assert!(why.contains("scored together"), "{why}");
        let one = (Golden { samples: vec![sample(&[1.0])] }, 0.0, 1e-6);
        assert!(prove_batches(&mut Less(signature(None), 0.5), Some(&one), 8).is_err(), "taken twice");
        assert!(prove_batches(&mut Less(signature(None), 0.5), None, 8).is_err(), "nothing to prove it by");
        assert!(prove_batches(&mut Less(signature(None), 0.0), Some(&golden), 1).is_err(), "nothing fits");
        assert!(prove_batches(&mut Less(signature(Some(1)), 0.0), None, 8).is_err());
    }
}
