//! The reader of ONNX files, which both engines stand on: what a file says, and the rewriting of what neither serves.

mod census;
mod file;
mod message;
mod zipmap;

pub(crate) use file::{OnnxFile, Operator};
#[cfg(feature = "tract")]
pub(crate) use message::{AttributeProto, NodeProto};
#[cfg(feature = "tract")]
pub(crate) use zipmap::class_count;

#[cfg(test)]
pub(crate) use file::tests as sketch;
