//! From the bytes of an ONNX file to a model: which engine and provider, with which options, and why not.
//!
//! A provider that is asked for by name is that provider or an error. Only `auto` chooses, and it says why it chose.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::Model;
use crate::onnx::OnnxFile;
use crate::signature::Signature;
use crate::tensor::DataType;
use crate::tuning::Tuning;
use crate::{onnxruntime, tract};

/// What should run a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// ONNX Runtime on the CPU where its library is found and takes the model, else tract.
    #[default]
    Auto,
    /// tract, the engine that is compiled in with feature `tract`.
    Tract,
    /// ONNX Runtime on the CPU.
    Cpu,
    /// ONNX Runtime on an NVIDIA GPU through CUDA.
    Cuda,
    /// ONNX Runtime on an NVIDIA GPU through TensorRT, with CUDA for what TensorRT does not take.
    TensorRt,
    /// ONNX Runtime through OpenVINO.
    OpenVino,
    /// ONNX Runtime through XNNPACK.
    Xnnpack,
}

impl Provider {
    /// Every provider, `auto` first.
    pub const ALL: &[Provider] = &[
        Provider::Auto,
        Provider::Tract,
        Provider::Cpu,
        Provider::Cuda,
        Provider::TensorRt,
        Provider::OpenVino,
        Provider::Xnnpack,
    ];

    /// The name in configuration and reports, lower-case.
    pub fn name(self) -> &'static str {
        match self {
            Provider::Auto => "auto",
            Provider::Tract => "tract",
            Provider::Cpu => "cpu",
            Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
            Provider::OpenVino => "openvino",
            Provider::Xnnpack => "xnnpack",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no provider's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown provider `{0}`: expected one of auto, tract, cpu, cuda, tensorrt, openvino, xnnpack")]
pub struct UnknownProvider(String);

impl FromStr for Provider {
    type Err = UnknownProvider;

    fn from_str(name: &str) -> Result<Provider, UnknownProvider> {
        let known = Provider::ALL.iter().copied().find(|provider| provider.name() == name);
        known.ok_or_else(|| UnknownProvider(name.to_owned()))
    }
}

/// A library that computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// tract, compiled in.
    Tract,
    /// ONNX Runtime, loaded at run time.
    OnnxRuntime,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Tract => "tract",
            Engine::OnnxRuntime => "ONNX Runtime",
        })
    }
}

/// How to load a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// What should run it.
    pub provider: Provider,
    /// Threads within one operator on ONNX Runtime; 0 is one per core. tract uses the calling thread.
    pub threads: usize,
    /// Where ONNX Runtime's library is. Without it: `ORT_DYLIB_PATH`, beside the binary, `../lib/edgewise` from there,
    /// the system's loader.
    pub onnxruntime: Option<PathBuf>,
    /// How ONNX Runtime prepares and runs it.
    pub tuning: Tuning,
}

/// A model that is ready, and what really runs it.
pub struct Loaded {
    /// The model.
    pub model: Box<dyn Model>,
    /// The engine behind it.
    pub engine: Engine,
    /// The engine's version, as `1.32.0`.
    pub engine_version: String,
    /// The provider that runs it; never [`Provider::Auto`].
    pub provider: Provider,
    /// What the caller should know about how it came to this: why `auto` did not take ONNX Runtime, or that a part of
    /// the model runs on another provider.
    pub why: Option<String>,
    /// Growth of the process's resident memory over the load, in bytes. The first load on ONNX Runtime counts its
    /// library in, and another load at the same time counts too; memory that the process held free before does not.
    /// 0 where the system does not tell.
    pub memory_bytes: u64,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("engine", &self.engine)
            .field("engine_version", &self.engine_version)
            .field("provider", &self.provider)
            .field("why", &self.why)
            .field("memory_bytes", &self.memory_bytes)
            .finish_non_exhaustive()
    }
}

/// Why a model could not be loaded. All are final for these bytes on this device with these options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The bytes are no ONNX model, or not all of one.
    #[error("not a whole ONNX file: {why}")]
    Corrupt {
        /// What is wrong with it.
        why: String,
    },
    /// A weight is kept in another file.
    #[error(
        "tensor `{tensor}` is kept in another file: save the model with its weights inside \
         (onnx.save(model, path, save_as_external_data=False))"
    )]
    ExternalData {
        /// The weight's name.
        tensor: String,
    },
    /// An input or output that can't be a tensor of ours.
    #[error("{what}: {why}")]
    Interface {
        /// Which one, as ``input `x` ``.
        what: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// An operator that the engine does not have.
    #[error("{engine} does not have operator {op} of domain {domain} opset {opset}")]
    UnsupportedOp {
        /// The engine.
        engine: Engine,
        /// The operator's type.
        op: String,
        /// Its domain; `ai.onnx` is the standard one.
        domain: String,
        /// The version of that domain which the file imports; 0 if it imports none.
        opset: i64,
    },
    /// A version of an operator set that the engine does not know.
    #[error("{engine} does not know opset {opset} of domain {domain}: it knows up to {newest}")]
    UnsupportedOpset {
        /// The engine.
        engine: Engine,
        /// The operator set's domain.
        domain: String,
        /// The version which the file imports.
        opset: i64,
        /// The newest that the engine knows.
        newest: i64,
    },
    /// The engine would not give right answers, or said no in its own words.
    #[error("{engine} refuses the model: {why}")]
    Refused {
        /// The engine.
        engine: Engine,
        /// Why.
        why: String,
    },
    /// The provider can't be had on this device.
    #[error("provider {provider} can't be had: {why}")]
    ProviderUnavailable {
        /// The provider.
        provider: Provider,
        /// Why.
        why: String,
    },
    /// `auto` tried both engines.
    #[error("no engine here loads the model: {onnxruntime}; {tract}")]
    NoEngine {
        /// Why ONNX Runtime did not.
        onnxruntime: Box<LoadError>,
        /// Why tract did not.
        tract: Box<LoadError>,
    },
}

impl LoadError {
    pub(crate) fn refused(engine: Engine, why: impl fmt::Display) -> LoadError {
        LoadError::Refused { engine, why: brief(why) }
    }

    pub(crate) fn unavailable(provider: Provider, why: impl fmt::Display) -> LoadError {
        LoadError::ProviderUnavailable { provider, why: brief(why) }
    }
}

/// Loads a model from the bytes of its ONNX file. The caller bounds their number.
///
/// # Errors
/// See [`LoadError`]. Nothing in `onnx` makes this panic, but a graph that computes a tensor larger than memory can end
/// the process; so can a library of ONNX Runtime that crashes while it is loaded, in a program that has not called
/// [`crate::try_libraries_apart`].
pub fn load(onnx: &[u8], options: &LoadOptions) -> Result<Loaded, LoadError> {
    let before = resident_bytes();
    let loaded = load_file(OnnxFile::read(onnx)?, options)?;
    give_back_free_memory();
    Ok(Loaded { memory_bytes: resident_bytes().saturating_sub(before), ..loaded })
}

/// What the model of an ONNX file takes and gives, without loading it.
///
/// # Errors
/// The file is none that any engine is given: see [`LoadError`].
pub fn signature_of(onnx: &[u8]) -> Result<Signature, LoadError> {
    Ok(OnnxFile::read(onnx)?.signature)
}

/// One engine or provider: what version there is here, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Availability {
    /// The provider; never [`Provider::Auto`].
    pub provider: Provider,
    /// The version of the engine that has it, or why it can't be had.
    pub version: Result<String, String>,
    /// The library that it comes from; `None` for what is compiled in, or can't be had.
    pub library: Option<PathBuf>,
}

/// What can run models on this device, and why the rest can't. A GPU provider is there if the library was built with
/// it; whether a GPU answers is known only when a model is loaded on it.
pub fn available(options: &LoadOptions) -> Vec<Availability> {
    let named = Provider::ALL.iter().copied().filter(|provider| *provider != Provider::Auto);
    let find = |provider| match provider {
        Provider::Tract => (tract::version(), None),
        _ => match onnxruntime::version(provider, options.onnxruntime.as_deref()) {
            Ok((version, library)) => (Ok(version), Some(library)),
            Err(why) => (Err(why), None),
        },
    };
    let availability = |provider| {
        let (version, library) = find(provider);
        Availability { provider, version, library }
    };
    named.map(availability).collect()
}

/// What this process knows of its engines by now: tract and, once a model has asked for it, ONNX Runtime. Loads nothing
/// and waits for nothing, so that a device which runs none does not pay for one.
pub fn known() -> Vec<Availability> {
    let why = match onnxruntime::outcome() {
        // Its providers are asked of the library that is there.
        Some(Ok(())) => return available(&LoadOptions::default()),
        Some(Err(why)) => Some(why),
        None => None,
    };
    let tract = Availability { provider: Provider::Tract, version: tract::version(), library: None };
    let cpu = why.map(|why| Availability { provider: Provider::Cpu, version: Err(why), library: None });
    std::iter::once(tract).chain(cpu).collect()
}

/// Takes the file, so that what was read of it is gone before memory is measured.
fn load_file(file: OnnxFile<'_>, options: &LoadOptions) -> Result<Loaded, LoadError> {
    match options.provider {
        Provider::Tract => tract::load(file),
        Provider::Auto => load_auto(file, options),
        provider => onnxruntime::load(&file, provider, options),
    }
}

/// ONNX Runtime, else tract. A library that the caller named and that can't be loaded is an error here too: a path is
/// an order, not a wish.
fn load_auto(file: OnnxFile<'_>, options: &LoadOptions) -> Result<Loaded, LoadError> {
    let refusal = match onnxruntime::load(&file, Provider::Cpu, options) {
        Ok(loaded) => return Ok(loaded),
        Err(error @ LoadError::ProviderUnavailable { .. }) if options.onnxruntime.is_some() => {
            return Err(error);
        }
        Err(error) => error,
    };
    match tract::load(file) {
        Ok(loaded) => Ok(Loaded { why: Some(refusal.to_string()), ..loaded }),
        Err(error) => Err(LoadError::NoEngine { onnxruntime: Box::new(refusal), tract: Box::new(error) }),
    }
}

/// Resident memory of this process: the second field of statm, in pages.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1)?.parse::<u64>().ok());
    // SAFETY: sysconf reads no memory of ours.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0).saturating_mul(u64::try_from(page).unwrap_or(0))
}

/// Reading a file leaves as much free memory as the file is large, which the allocator would keep.
fn give_back_free_memory() {
    // SAFETY: malloc_trim only returns free memory to the system.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// An engine's words on one line, and not more of them than a log line or a reported state bears: tract prints whole
/// nodes with their weights.
pub(crate) fn brief(words: impl fmt::Display) -> String {
    const LONGEST: usize = 600;
    let words = words.to_string();
    let mut line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.len() > LONGEST {
        let end = line.char_indices().map(|(at, _)| at).take_while(|at| *at <= LONGEST).last().unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line
}

/// A type of ours in the numbers of the ONNX standard (TensorProto.DataType), which both engines speak.
pub(crate) fn onnx_data_type(number: i32) -> Result<DataType, String> {
    Ok(match number {
        1 => DataType::F32,
        2 => DataType::U8,
        3 => DataType::I8,
        4 => DataType::U16,
        5 => DataType::I16,
        6 => DataType::I32,
        7 => DataType::I64,
        8 => DataType::String,
        9 => DataType::Bool,
        10 => DataType::F16,
        11 => DataType::F64,
        12 => DataType::U32,
        13 => DataType::U64,
        14 | 15 => return Err("complex numbers are not supported".into()),
        16 => return Err("type BF16 is not supported: cast it to FP32 or FP16 in the graph".into()),
        other => {
            return Err(format!(
                "element type {other} of the ONNX standard is not supported: cast it in the graph"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provider_names_read_back() {
        for provider in Provider::ALL {
            assert_eq!(provider.to_string().parse(), Ok(*provider));
            assert_eq!(serde_json::to_value(provider).unwrap(), provider.name());
        }
        let error = "gpu".parse::<Provider>().unwrap_err().to_string();
        assert!(Provider::ALL.iter().all(|provider| error.contains(provider.name())), "{error}");
    }
}
