//! Where the engine's tests find ONNX Runtime's library and the models that are too large for the repository.

use std::path::{Path, PathBuf};

/// The workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// ONNX Runtime's library: `ORT_DYLIB_PATH`, or where `cross/onnxruntime` puts it.
pub(crate) fn library() -> PathBuf {
    let named = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    let fetched = target().join("onnxruntime").join(std::env::consts::ARCH).join("libonnxruntime.so");
    let library = named.unwrap_or(fetched);
    assert!(library.exists(), "no library of ONNX Runtime at {}: run cross/onnxruntime", library.display());
    library
}

/// Cargo's target directory: the one that this test was built into.
pub(crate) fn target() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    named.unwrap_or_else(|| workspace().join("target"))
}
