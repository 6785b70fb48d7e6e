//! The state of all deployments, as it survives: one small file, replaced whole.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use cloud_sync::contract::Collect;
use cloud_sync::name::ModelName;
use serde::{Deserialize, Serialize};

use super::Deployment;
use crate::durable;
use crate::link::Origin;

/// Largest state: 64 models with a few kilobytes each take a tenth of it.
const MAX_STATE_BYTES: u64 = 4 << 20;

/// All that has to survive.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct State {
    /// The revision of the registry's desired state that was heard last.
    pub(super) revision: u64,
    /// Which registry said that.
    pub(super) origin: Origin,
    /// Whether a twin says what is to run, and not the registry.
    pub(super) twin_decides: bool,
    /// What is collected, where the cloud or a command has said so.
    pub(super) collect: Option<Collect>,
    /// Each model.
    pub(super) models: BTreeMap<ModelName, Deployment>,
}

/// The state file can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{doing} the deployments' state {path}: {source}", path = .path.display())]
pub struct StateError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl State {
    /// The state in the file at `path`; an empty one where there is none. One that can't be decoded is set aside:
    /// the cloud says again what is wanted.
    pub(super) fn read(path: &Path) -> Result<Self, StateError> {
        let failed = |doing, source| StateError { doing, path: path.to_owned(), source };
        let bytes = match durable::read(path, MAX_STATE_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed("reading", error)),
        };
        match serde_cbor::from_slice(&bytes) {
            Ok(state) => Ok(state),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the deployments' state is damaged; it is set aside");
                let aside = std::fs::rename(path, path.with_extension("damaged"));
                aside.map(|()| Self::default()).map_err(|source| failed("setting aside", source))
            }
        }
    }

    /// Replaces the file at `path`, durably.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        durable::replace(path, &serde_cbor::to_vec(self).map_err(io::Error::other)?)
    }
}

#[cfg(test)]
mod tests {
    use cloud_sync::contract::ModelSettings;
    use cloud_sync::digest::Digest;

    use super::*;
    use crate::deploy::Target;
    use crate::fetch::Source;

    #[test]
    fn a_damaged_state_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deployments");
        let state = State { revision: 7, ..State::default() };
        state.write(&path).unwrap();
        assert_eq!(State::read(&path).unwrap(), state);
        std::fs::write(&path, b"nonsense").unwrap();
        assert_eq!(State::read(&path).unwrap(), State::default());
        assert!(directory.path().join("deployments.damaged").exists());
        assert!(!path.exists());
    }

    #[test]
    fn a_state_from_before_there_were_sources_is_read() {
        use serde_cbor::Value;

        let target = Target {
            version: 3,
            digest: Digest::of(b"x"),
            size: Some(7),
            source: "https://user:secret@models.example/x.bundle".parse().unwrap(),
            settings: ModelSettings::default(),
            deployment: 2,
        };
        let stored = serde_cbor::to_vec(&target).unwrap();
        assert_eq!(serde_cbor::from_slice::<Target>(&stored).unwrap(), target, "with the user");
        let mut fields: BTreeMap<Value, Value> = serde_cbor::from_slice(&stored).unwrap();
        fields.remove(&Value::Text("source".to_owned())).unwrap();
        assert_eq!(fields[&Value::Text("size".to_owned())], Value::Integer(7), "as it always was");
        let old = serde_cbor::to_vec(&fields).unwrap();
        let read: Target = serde_cbor::from_slice(&old).unwrap();
        assert_eq!(read, Target { source: Source::Registry, ..target });
    }
}
