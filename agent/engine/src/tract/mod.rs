//! All that speaks to tract: the engine, and the reader of ONNX files, whose protobuf types are tract's.

mod distrust;
mod engine;
mod file;

pub(crate) use engine::{TractModel, VERSION};
pub(crate) use file::{OnnxFile, Operator};
