//! ONNX scoring behind one trait.
//!
//! [`load()`] turns the bytes of an ONNX file into a [`Model`]: [`Signature`] in, [`Tensors`] in, [`Tensors`] out.
//! Two engines stand behind it. tract is compiled in (feature `tract`) and works everywhere; ONNX Runtime is faster and covers more
//! operators, and is loaded at run time where its library is found. Nobody outside this crate sees either.
//!
//! The map:
//! - [`tensor`] named, typed, shaped values; [`signature`] what a model takes and gives;
//! - [`model`] the trait and what scoring can fail with;
//! - [`mod@load`] providers, options, errors, the choice of an engine; [`tuning`] what ONNX Runtime can be told;
//! - `onnx/` what a file says, before an engine sees it;
//! - `tract/` and `onnxruntime/` the engines, each the only place that names its library;
//! - [`json`] and [`binary`] the tensors of the Open Inference Protocol; [`golden`] the proof that a model gives what
//!   it should; [`profile`] how long it takes; [`batch`] several sets of inputs as one.

pub mod batch;
pub mod binary;
mod contain;
pub mod golden;
pub mod json;
pub mod load;
pub mod model;
mod onnx;
mod onnxruntime;
pub mod profile;
pub mod signature;
pub mod tensor;
mod tract;
pub mod tuning;

pub use load::{
    Availability, Engine, LoadError, LoadOptions, Loaded, Provider, UnknownProvider, available, known, load,
    signature_of,
};
pub use model::{InputError, Model, ScoreError};
pub use onnxruntime::{send_no_telemetry, try_libraries_apart};
pub use signature::{Signature, TensorSpec};
pub use tensor::{Data, DataType, Element, ShapeError, Tensor, Tensors};
pub use tuning::{Optimization, Tuning, UnknownOptimization};
