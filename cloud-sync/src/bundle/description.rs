//! `model.toml`: what a bundle says of itself. Everything is optional; an unknown key is an error that names it.

use serde::{Deserialize, Serialize};

use super::{BundleError, BundlePath, Manifest};

/// The whole of `model.toml`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Description {
    /// `[model]`
    pub model: ModelSection,
    /// `[onnx]`
    pub onnx: Onnx,
    /// `[labels]`
    pub labels: Option<Labels>,
    /// `[golden]`
    pub golden: Option<Golden>,
    /// `[resources]`
    pub resources: Resources,
}

/// `[model]`: words for people.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// What the model does.
    pub description: Option<String>,
    /// What it was trained with.
    pub framework: Option<String>,
    /// The version of that.
    pub framework_version: Option<String>,
    /// The licence of the model.
    pub license: Option<String>,
}

/// `[onnx]`: the model's file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Onnx {
    /// Its path; `model.onnx` where none is given.
    pub file: String,
}

/// `[labels]`: names of classes, one a line, in the order of the classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    /// Their path.
    pub file: String,
}

/// `[golden]`: inputs with the outputs that they must give on every device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// Their path.
    pub file: String,
    /// Relative tolerance.
    #[serde(default = "default_rtol")]
    pub rtol: f64,
    /// Absolute tolerance.
    #[serde(default = "default_atol")]
    pub atol: f64,
}

/// `[resources]`: what the model needs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Cores.
    pub cpu: Option<f64>,
    /// Memory in MiB.
    pub memory_mb: Option<u64>,
    /// Whether it needs a GPU.
    pub accelerator: Accelerator,
}

/// What a model needs beside the processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Nothing.
    #[default]
    Any,
    /// A GPU; on a device without one the version is rejected.
    Gpu,
}

impl Default for Onnx {
    fn default() -> Self {
        Self { file: "model.onnx".to_owned() }
    }
}

// 1e-3 is what float32 models keep between engines and processors; see the engine's agreement tests.
fn default_rtol() -> f64 {
    1e-3
}

fn default_atol() -> f64 {
    1e-4
}

impl Description {
    /// Reads `model.toml`.
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        let text = std::str::from_utf8(bytes).map_err(|error| BundleError::Description(error.to_string()))?;
        let description: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            BundleError::Description(format!("line {line}: {}", error.message()))
        })?;
        if let Some(golden) = &description.golden
            && !(golden.rtol.is_finite()
                && golden.rtol >= 0.0
                && golden.atol.is_finite()
                && golden.atol >= 0.0)
        {
            return Err(BundleError::Description("golden.rtol and golden.atol must be 0 or more".to_owned()));
        }
        Ok(description)
    }

    /// The path of the ONNX file.
    pub fn onnx(&self) -> Result<BundlePath, BundleError> {
        BundlePath::new(self.onnx.file.as_str())
    }

    /// The path of the golden samples, where there are any.
    pub fn golden(&self) -> Result<Option<BundlePath>, BundleError> {
        self.golden.as_ref().map(|golden| BundlePath::new(golden.file.as_str())).transpose()
    }

    /// The path of the labels, where there are any.
    pub fn labels(&self) -> Result<Option<BundlePath>, BundleError> {
        self.labels.as_ref().map(|labels| BundlePath::new(labels.file.as_str())).transpose()
    }

    /// Every file that is named is there.
    pub(super) fn check_against(&self, manifest: &Manifest) -> Result<(), BundleError> {
        let named = [Some(self.onnx()?), self.golden()?, self.labels()?];
        match named.into_iter().flatten().find(|path| manifest.file(path).is_none()) {
            Some(path) => Err(BundleError::Missing(path)),
            None => Ok(()),
        }
    }
}
