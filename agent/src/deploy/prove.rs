//! The proof: a version is loaded on this device, its golden samples give what they must, and it is warm.
//!
//! Where requests shall be scored together, that is proven, too (see `batches`), and taken back where a row has another output then.
//!
//! The only place that makes a [`Proven`] version, and so the only way to serve.

use std::path::PathBuf;
use std::sync::Arc;

use cloud_sync::bundle::Accelerator;
use cloud_sync::name::ModelName;
use engine::golden::{self, Golden};
use engine::{LoadError, LoadOptions, Model, Provider, Tensors};

use super::{batches, threads};
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
        && let Err(why) = batches::prove(first.model.as_mut(), golden.as_ref(), settings.batching.max_rows)
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
}
