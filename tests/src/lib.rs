//! The real programs, started and driven as a user would: what the demo, the end-to-end tests and the benches share.

#![expect(
    clippy::indexing_slicing,
    reason = "only JSON values are indexed, which give null for what is not there"
)]

pub mod bounds;
pub mod client;
pub mod data;
pub mod demo;
pub mod edge;
pub mod enrolment;
pub mod files;
pub mod fleet;
pub mod flow;
pub mod hostile;
pub mod https;
pub mod journey;
pub mod kills;
pub mod module;
pub mod mosquitto;
pub mod nats;
pub mod peer;
pub mod postgres;
pub mod process;
pub mod python;
pub mod random;
pub mod remote;
pub mod replicas;
pub mod seaweedfs;
pub mod site;
pub mod soak;
pub mod toxic;
pub mod trace;

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap_or_else(|_| PathBuf::from("."))
}

/// The directory in which this program was built; the product's binaries lie beside it.
pub fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let directory = program.parent().unwrap_or(Path::new("."));
    // Tests lie one level deeper than programs.
    let directory =
        if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    directory.to_owned()
}

/// Where built things that are not cargo's own lie: `target/`.
pub fn target_root() -> PathBuf {
    target().parent().map(Path::to_owned).unwrap_or_default()
}

/// An empty directory `target/NAME`. It is left behind, so that the logs can be read after a failure.
pub fn fresh_directory(name: &str) -> Result<PathBuf, process::Failure> {
    let directory = target_root().join(name);
    if directory.exists() {
        std::fs::remove_dir_all(&directory)
            .map_err(|error| format!("removing {}: {error}", directory.display()))?;
    }
    std::fs::create_dir_all(&directory)
        .map_err(|error| format!("making {}: {error}", directory.display()))?;
    Ok(directory)
}

/// ONNX Runtime's library: `ORT_DYLIB_PATH`, or where `cross/onnxruntime` puts it.
pub fn onnxruntime() -> Result<PathBuf, process::Failure> {
    let named = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    let fetched = || target_root().join("onnxruntime").join(std::env::consts::ARCH).join("libonnxruntime.so");
    let library = named.unwrap_or_else(fetched);
    if library.exists() {
        Ok(library)
    } else {
        Err(format!("there is no {}: run cross/onnxruntime", library.display()))
    }
}
