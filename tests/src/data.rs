//! The sample model: its bundles, and its held-out test split of real windows with their true labels.

use std::path::{Path, PathBuf};

use crate::files;
use crate::process::Failure;
use crate::random::Random;

/// The sample model's name in the registry.
pub const MODEL: &str = "power-demand";

/// One labelled window.
#[derive(Debug, Clone)]
pub struct Window {
    /// The true class.
    pub label: i64,
    /// 24 hourly readings.
    pub load: Vec<f32>,
}

/// The sample's directory, or one version's bundle in it.
pub fn sample(version: Option<u64>) -> PathBuf {
    let sample = crate::repository().join("modules/samples").join(MODEL);
    version.map_or(sample.clone(), |version| sample.join(version.to_string()))
}

/// The test split, in the order of its file.
pub fn test_split() -> Result<Vec<Window>, Failure> {
    let path = sample(None).join("test.csv");
    let text = files::read(&path)?;
    let wrong = |line: &str| format!("{}: not a labelled window: {line}", path.display());
    let window = |line: &str| {
        let (label, load) = line.split_once(',')?;
        let load: Option<Vec<f32>> = load.split(',').map(|value| value.trim().parse().ok()).collect();
        Some(Window { label: label.trim().parse().ok()?, load: load? })
    };
    text.lines().skip(1).map(|line| window(line).ok_or_else(|| wrong(line))).collect()
}

/// The names of the classes.
pub fn labels() -> Result<Vec<String>, Failure> {
    let path = sample(Some(1)).join("labels.txt");
    let text = files::read(&path)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// A copy of a version's bundle in `directory`, to be changed.
pub fn copy(version: u64, directory: &Path) -> Result<PathBuf, Failure> {
    let source = sample(Some(version));
    for path in files::below(&source)? {
        let inside = path.strip_prefix(&source).map_err(|error| error.to_string())?;
        files::write(&directory.join(inside), &std::fs::read(&path).map_err(|error| error.to_string())?)?;
    }
    Ok(directory.to_owned())
}

/// A copy of a version's bundle with an asset of so many bytes that nothing can compress or share.
pub fn heavy(version: u64, bytes: usize, directory: &Path) -> Result<PathBuf, Failure> {
    noisy(version, version, bytes, directory)
}

/// As [`heavy`], with bytes that another seed makes others.
pub fn noisy(version: u64, seed: u64, bytes: usize, directory: &Path) -> Result<PathBuf, Failure> {
    let bundle = copy(version, directory)?;
    files::write(&bundle.join("noise.bin"), Random::new(seed).bytes(bytes))?;
    Ok(bundle)
}
