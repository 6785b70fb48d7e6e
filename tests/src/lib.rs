//! The real programs, started and driven as a user would: what the demo, the end-to-end tests and the benches share.

#![expect(
    clippy::indexing_slicing,
    reason = "only JSON values are indexed, which give null for what is not there"
)]

pub mod data;
pub mod demo;
pub mod process;

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
