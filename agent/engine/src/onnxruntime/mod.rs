//! All that speaks to ONNX Runtime: its library, found and checked before it is trusted, and the engine.

mod engine;
mod library;

pub(crate) use engine::{load, version};
