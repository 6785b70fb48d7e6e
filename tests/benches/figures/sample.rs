//! The sample model that is measured, and the engines that run it here.

use std::path::{Path, PathBuf};

use e2e::data;
use e2e::process::Failure;
use engine::{LoadError, LoadOptions, Model, Provider, Tensor, Tensors};

use crate::work::Work;

/// The version of the sample that is measured.
pub(crate) const VERSION: u64 = 2;

/// Its bundle.
pub(crate) fn bundle() -> PathBuf {
    data::sample(Some(VERSION))
}

/// One window of the test split, as its input.
pub(crate) fn inputs() -> Result<Tensors, Failure> {
    let load = window()?;
    let tensor = Tensor::from_vec(vec![1, load.len()], load).map_err(|error| error.to_string())?;
    Ok([("load".to_owned(), tensor)].into_iter().collect())
}

/// Both engines on the CPU with one thread each: what one core gives.
pub(crate) fn engines() -> [LoadOptions; 2] {
    let options =
        |provider| LoadOptions { provider, threads: 1, onnxruntime: library(), ..LoadOptions::default() };
    [options(Provider::Tract), options(Provider::Cpu)]
}

/// The bare engine with the sample.
pub(crate) fn load(options: &LoadOptions) -> Result<Result<engine::Loaded, LoadError>, Failure> {
    let path = bundle().join("model.onnx");
    let onnx = std::fs::read(&path).map_err(|error| format!("reading {}: {error}", path.display()))?;
    Ok(engine::load(&onnx, options))
}

/// The bare engine with a model, as the floor has it.
pub(crate) fn engine(work: &Work) -> Result<Box<dyn Model>, Failure> {
    let library = library().ok_or("there is no ONNX Runtime here; run cross/onnxruntime")?;
    engine_from(work, &library)
}

/// As [`engine`], with this library.
pub(crate) fn engine_from(work: &Work, library: &Path) -> Result<Box<dyn Model>, Failure> {
    let (provider, onnxruntime) = (Provider::Cpu, Some(library.to_owned()));
    let options = LoadOptions { provider, threads: work.threads, onnxruntime, ..LoadOptions::default() };
    let onnx =
        std::fs::read(&work.onnx).map_err(|error| format!("reading {}: {error}", work.onnx.display()))?;
    engine::load(&onnx, &options).map(|loaded| loaded.model).map_err(|error| error.to_string())
}

/// Where `cross/onnxruntime` puts the library; without it the engine looks where it always does.
pub(crate) fn library() -> Option<PathBuf> {
    let folder = e2e::target_root().join("onnxruntime").join(std::env::consts::ARCH);
    Some(folder.join("libonnxruntime.so")).filter(|library| library.exists())
}

pub(crate) fn window() -> Result<Vec<f32>, Failure> {
    let window = data::test_split()?.into_iter().next();
    Ok(window.ok_or("the test split is empty")?.load)
}
