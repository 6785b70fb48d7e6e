//! A build without tract, for devices that have ONNX Runtime and no room for two engines.

use crate::load::{LoadError, Loaded, Provider};
use crate::onnx::OnnxFile;

const WHY: &str = "this build has no tract: install ONNX Runtime, or a build with tract";

/// Always an error.
pub(crate) fn load(_: OnnxFile<'_>) -> Result<Loaded, LoadError> {
    Err(LoadError::unavailable(Provider::Tract, WHY))
}

/// Always an error.
pub(crate) fn version() -> Result<String, String> {
    Err(WHY.to_owned())
}
