//! All that speaks to ONNX Runtime: its library, found and checked before it is trusted, and the engine.

mod engine;
mod library;
mod trial;

pub(crate) use engine::{load, version};
pub use trial::try_libraries_apart;
