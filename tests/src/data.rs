//! The sample model's held-out test split: real windows with their true labels.

use crate::process::Failure;

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
pub fn sample(version: Option<u64>) -> std::path::PathBuf {
    let sample = crate::repository().join("modules/samples").join(MODEL);
    version.map_or(sample.clone(), |version| sample.join(version.to_string()))
}

/// The test split, in the order of its file.
pub fn test_split() -> Result<Vec<Window>, Failure> {
    let path = sample(None).join("test.csv");
    let text =
        std::fs::read_to_string(&path).map_err(|error| format!("reading {}: {error}", path.display()))?;
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
    let text =
        std::fs::read_to_string(&path).map_err(|error| format!("reading {}: {error}", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}
