//! Bundles that lie on this machine and are served without a cloud.

use std::path::Path;

use cloud_sync::name::ModelName;

use super::Error;
use crate::config::Config;
use crate::deploy::prove::prove;
use crate::scorer::Scorer;
use crate::vault::Verified;

/// Proves a bundle that lies on this machine and lets it serve, under the name of its file or directory.
pub(super) fn serve(path: &Path, config: &Config, scorer: &Scorer) -> Result<(), Error> {
    let (bundle, name) = open(path)?;
    let settings = config.settings();
    let onnxruntime = config.engine.onnxruntime.clone();
    let proven = prove(&bundle, &name, 1, &settings, onnxruntime)
        .map_err(|source| Error::Local { bundle: path.to_owned(), source })?;
    let facts = &proven.facts;
    tracing::info!(model = %name, engine = %facts.engine, provider = %facts.provider, why = facts.why, "serving a local bundle");
    scorer.swap(proven)?;
    Ok(())
}

/// The bundle, whole and unaltered, and the name of its model. Blocking: reads all of it.
pub(crate) fn open(path: &Path) -> Result<(Verified, ModelName), Error> {
    let bundle = Verified::local(path)?;
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = local_name(&full).parse();
    let name = name.map_err(|source| Error::LocalName { bundle: path.to_owned(), source })?;
    Ok((bundle, name))
}

/// `load/2` and `load.onnx` are both `load`: a directory that is named by a number is a version of its parent.
fn local_name(path: &Path) -> String {
    let stem = |path: &Path| {
        let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
        name.map(|name| name.to_string_lossy().to_lowercase().replace(['_', ' ', '.'], "-"))
            .unwrap_or_default()
    };
    let name = stem(path);
    match path.parent() {
        Some(parent) if name.bytes().all(|byte| byte.is_ascii_digit()) => stem(parent),
        _ => name,
    }
}
