//! All that speaks to ONNX Runtime: its library, found and checked before it is trusted, and the engine.

mod engine;
mod library;
mod trial;

pub(crate) use engine::{load, version};
pub(crate) use library::outcome;
pub use library::send_no_telemetry;
pub use trial::try_libraries_apart;
