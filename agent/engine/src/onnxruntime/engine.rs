//! Scoring with ONNX Runtime.
//!
//! Invariant: what is reported as the provider is what was registered; a provider that can't be registered is an
//! error, and where it leaves operators to the CPU, the load says so.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{Session, SessionInputValue};
use ort::value::{DynTensorValueType, DynValue, TensorElementType, TensorRef, ValueType};

use super::library::{Library, library};
use crate::contain::contained;
use crate::load::{Engine, LoadError, LoadOptions, Loaded, Provider, brief};
use crate::model::{InputError, Model, ScoreError};
use crate::onnx::{OnnxFile, Operator};
use crate::signature::Signature;
use crate::tensor::{Data, Element, Tensor, Tensors, elements};
use crate::tuning::Optimization;

/// Loads a model on ONNX Runtime.
pub(crate) fn load(
    file: &OnnxFile<'_>,
    provider: Provider,
    options: &LoadOptions,
) -> Result<Loaded, LoadError> {
    let library = usable(provider, options.onnxruntime.as_deref())
        .map_err(|why| LoadError::unavailable(provider, why))?;
    let start = |provider, everything| {
        contained(|| session(&library, file, provider, options, everything))
            .unwrap_or_else(|panic| Err(Failure::Model(panic)))
    };
    // First as a whole on the provider; if it does not take every operator, with the rest on the CPU, and said so.
    let (session, why) = match start(provider, provider != Provider::Cpu) {
        Err(Failure::Model(why)) if why.contains("fallback to CPU") => (
            start(provider, false),
            Some(format!("{provider} does not take every operator: the CPU runs the rest")),
        ),
        session => (session, None),
    };
    let session = session.map_err(|failure| match failure {
        Failure::Provider(why) => LoadError::unavailable(provider, why),
        // A GPU that does not answer shows only here. If the CPU takes the model, the model is not at fault.
        Failure::Model(why) if provider != Provider::Cpu && start(Provider::Cpu, false).is_ok() => {
            LoadError::unavailable(provider, why)
        }
        Failure::Model(why) => refusal(file, &why),
    })?;
    let model = OnnxRuntimeModel { session, signature: file.signature.clone() };
    Ok(Loaded {
        model: Box::new(model),
        engine: Engine::OnnxRuntime,
        engine_version: library.version.clone(),
        provider,
        why,
        memory_bytes: 0,
    })
}

/// The version of the library and its file, if it has this provider; else why not.
pub(crate) fn version(provider: Provider, named: Option<&Path>) -> Result<(String, PathBuf), String> {
    usable(provider, named).map(|library| (library.version.clone(), library.path.clone()))
}

/// A model that ONNX Runtime runs.
struct OnnxRuntimeModel {
    session: Session,
    signature: Signature,
}

impl Model for OnnxRuntimeModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn score(&mut self, inputs: &Tensors) -> Result<Tensors, ScoreError> {
        self.signature.check(inputs)?;
        let failed = |why: String| ScoreError::Engine { engine: Engine::OnnxRuntime, why: brief(why) };
        let mut values: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs.iter() {
            values.push((Cow::Borrowed(name), to_ort(name, tensor)?));
        }
        let session = &mut self.session;
        let specs = &self.signature.outputs;
        contained(|| {
            let outputs = session.run(values).map_err(|error| failed(error.to_string()))?;
            let named = specs.iter().map(|spec| {
                let value = outputs
                    .get(&spec.name)
                    .ok_or_else(|| failed(format!("no output `{}` came", spec.name)))?;
                let tensor =
                    from_ort(value).map_err(|why| failed(format!("output `{}`: {why}", spec.name)))?;
                if tensor.data_type() != spec.data_type {
                    let (given, expected) = (tensor.data_type(), spec.data_type);
                    return Err(failed(format!("output `{}` is of type {given}, not {expected}", spec.name)));
                }
                Ok((spec.name.clone(), tensor))
            });
            named.collect()
        })
        .unwrap_or_else(|panic| Err(failed(panic)))
    }
}

enum Failure {
    Provider(String),
    Model(String),
}

/// The library, if it was built with this provider.
fn usable(provider: Provider, named: Option<&Path>) -> Result<std::sync::Arc<Library>, String> {
    let library = library(named)?;
    let built_in = match provider {
        Provider::Cuda => ep::CUDA::is_available(),
        Provider::TensorRt => ep::TensorRT::is_available(),
        Provider::OpenVino => ep::OpenVINO::is_available(),
        Provider::Xnnpack => ep::XNNPACK::is_available(),
        Provider::Auto | Provider::Tract | Provider::Cpu => Ok(true),
    };
    match built_in {
        Ok(true) => Ok(library),
        Ok(false) => {
            Err(format!("ONNX Runtime {} at {} is built without it", library.version, library.path.display()))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// `everything`: fail rather than leave an operator to the CPU.
fn session(
    library: &Library,
    file: &OnnxFile<'_>,
    provider: Provider,
    options: &LoadOptions,
    everything: bool,
) -> Result<Session, Failure> {
    let builder = configured(library, &file.signature, provider, options, everything);
    let mut builder = builder.map_err(|error| Failure::Provider(error.to_string()))?;
    builder.commit_from_memory(&file.bytes).map_err(|error| Failure::Model(error.to_string()))
}

fn configured(
    library: &Library,
    signature: &Signature,
    provider: Provider,
    options: &LoadOptions,
    everything: bool,
) -> ort::Result<SessionBuilder> {
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let builder = SessionBuilder::new(&library.environment)?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        // An idle model must cost no power; the price is a few microseconds to wake a thread.
        .with_intra_op_spinning(false)?
        .with_optimization_level(match options.tuning.optimization {
            Optimization::None => GraphOptimizationLevel::Disable,
            Optimization::Basic => GraphOptimizationLevel::Level1,
            Optimization::Extended => GraphOptimizationLevel::Level2,
            Optimization::All => GraphOptimizationLevel::All,
        })?
        // A plan of the memory is kept for each shape that ever came; where shapes are free that takes twice the memory and
        // saves no time.
        .with_memory_pattern(signature.inputs.iter().all(|input| !input.shape.contains(&None)))?
        .with_execution_providers(providers(provider, options.tuning.arena))?;
    Ok(if everything { builder.with_disable_cpu_fallback()? } else { builder })
}

fn providers(provider: Provider, arena: bool) -> Vec<ExecutionProviderDispatch> {
    let providers = match provider {
        // Beside another provider it must not be named: ONNX Runtime refuses that where it is also told not to fall back to it.
        Provider::Cpu if !arena => vec![ep::CPU::default().with_arena_allocator(false).build()],
        Provider::Auto | Provider::Tract | Provider::Cpu => vec![],
        Provider::Cuda => vec![ep::CUDA::default().build()],
        Provider::TensorRt => vec![ep::TensorRT::default().build(), ep::CUDA::default().build()],
        Provider::OpenVino => vec![ep::OpenVINO::default().build()],
        Provider::Xnnpack => vec![ep::XNNPACK::default().build()],
    };
    providers.into_iter().map(ExecutionProviderDispatch::error_on_failure).collect()
}

/// ONNX Runtime says no in a sentence; where an operator or an opset is the reason, the error names it.
fn refusal(file: &OnnxFile<'_>, why: &str) -> LoadError {
    let engine = Engine::OnnxRuntime;
    if let Some((_, newest)) = why.split_once("is till opset ") {
        let newest =
            newest.split(|c: char| !c.is_ascii_digit()).next().and_then(|number| number.parse().ok());
        let mut imports = file.opsets();
        let import = imports.find(|(_, opset)| why.contains(&format!("Opset {opset} is under development")));
        if let (Some(newest), Some((domain, opset))) = (newest, import) {
            return LoadError::UnsupportedOpset { engine, domain: domain.into(), opset, newest };
        }
    }
    const OPERATOR: [&str; 3] =
        ["is not a registered function/op", "No Op registered for", "Could not find an implementation for"];
    if OPERATOR.iter().any(|reason| why.contains(reason)) {
        let names = |op: &str| [format!("for {op} "), format!("for {op}("), format!(":{op}(")];
        let named = |operator: &Operator<'_>| names(operator.op).iter().any(|name| why.contains(name));
        if let Some(Operator { op, domain, opset }) = file.operators().into_iter().find(named) {
            return LoadError::UnsupportedOp { engine, op: op.into(), domain: domain.into(), opset };
        }
    }
    LoadError::refused(engine, why)
}

fn to_ort<'a>(name: &str, tensor: &'a Tensor) -> Result<SessionInputValue<'a>, InputError> {
    fn of<'a, T>(tensor: &'a Tensor, elements: &'a [T]) -> ort::Result<SessionInputValue<'a>>
    where
        T: ort::value::PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static,
    {
        Ok(TensorRef::from_array_view((tensor.shape(), elements))?.into())
    }
    let value = match tensor.data() {
        Data::F32(elements) => of(tensor, elements),
        Data::F64(elements) => of(tensor, elements),
        Data::F16(elements) => of(tensor, elements),
        Data::I8(elements) => of(tensor, elements),
        Data::I16(elements) => of(tensor, elements),
        Data::I32(elements) => of(tensor, elements),
        Data::I64(elements) => of(tensor, elements),
        Data::U8(elements) => of(tensor, elements),
        Data::U16(elements) => of(tensor, elements),
        Data::U32(elements) => of(tensor, elements),
        Data::U64(elements) => of(tensor, elements),
        Data::Bool(elements) => of(tensor, elements),
        Data::String(elements) => {
            ort::value::Tensor::from_string_array((tensor.shape(), elements.as_slice())).map(Into::into)
        }
    };
    value.map_err(|error| InputError::Value { input: name.to_owned(), why: error.to_string() })
}

fn from_ort(value: &DynValue) -> Result<Tensor, String> {
    fn of<T: ort::value::PrimitiveTensorElementType + Element>(value: &DynValue) -> Result<Tensor, String> {
        let (shape, elements) = value.try_extract_tensor::<T>().map_err(|error| error.to_string())?;
        tensor(shape, elements.to_vec())
    }
    fn tensor<T: Element>(shape: &[i64], elements: Vec<T>) -> Result<Tensor, String> {
        let shape: Result<Vec<usize>, _> = shape.iter().map(|length| usize::try_from(*length)).collect();
        let shape = shape.map_err(|error| error.to_string())?;
        Tensor::from_vec(shape, elements).map_err(|error| error.to_string())
    }
    let ValueType::Tensor { ty, .. } = value.dtype() else { return Err("it is not a tensor".into()) };
    match ty {
        TensorElementType::Float32 => of::<f32>(value),
        TensorElementType::Float64 => of::<f64>(value),
        TensorElementType::Float16 => of::<half::f16>(value),
        TensorElementType::Int8 => of::<i8>(value),
        TensorElementType::Int16 => of::<i16>(value),
        TensorElementType::Int32 => of::<i32>(value),
        TensorElementType::Int64 => of::<i64>(value),
        TensorElementType::Uint8 => of::<u8>(value),
        TensorElementType::Uint16 => of::<u16>(value),
        TensorElementType::Uint32 => of::<u32>(value),
        TensorElementType::Uint64 => of::<u64>(value),
        TensorElementType::Bool => bools(value),
        TensorElementType::String => {
            let (shape, strings) = value.try_extract_strings().map_err(|error| error.to_string())?;
            tensor(shape, strings)
        }
        other => Err(format!("it is of type {other}")),
    }
}

/// Booleans by their bytes: a constant of a hostile file can hold one that is neither 0 nor 1, which a `bool` must not.
fn bools(value: &DynValue) -> Result<Tensor, String> {
    let value = value.view().downcast::<DynTensorValueType>().map_err(|error| error.to_string())?;
    let shape: Result<Vec<usize>, _> = value.shape().iter().map(|length| usize::try_from(*length)).collect();
    let shape = shape.map_err(|error| error.to_string())?;
    let count = elements(&shape).map_err(|error| error.to_string())?;
    let bytes: &[u8] = match value.data_ptr().cast::<u8>() {
        first if count == 0 || first.is_null() => &[],
        // SAFETY: ONNX Runtime keeps one byte per boolean, row-major, in memory that lives as long as `value`.
        first => unsafe { std::slice::from_raw_parts(first, count) },
    };
    Tensor::from_vec(shape, bytes.iter().map(|byte| *byte != 0).collect()).map_err(|error| error.to_string())
}
