//! Why a request to the registry was not fulfilled, and whose turn it is.

use cloud_sync::bundle::BundleError;
use cloud_sync::name::{ModelVersion, NameError};

use crate::api::Holder;
use crate::objects::ObjectError;
use crate::store::StoreError;

/// Why a request was not fulfilled. `Unavailable` and `Timeout` are worth another try; `Internal` is ours to mend; the
/// rest will fail again until the request changes.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// What is there stands against it.
    #[error("{0}")]
    Conflict(String),
    /// Devices need the version that was to be deleted.
    #[error("{version} is in use; deploy another version to its holders or undeploy it first")]
    InUse {
        /// The version.
        version: String,
        /// Who needs it.
        holders: Vec<Holder>,
    },
    /// The bundle does not deserve a version.
    #[error("{0}")]
    Refused(String),
    /// The body is larger than it may be.
    #[error("{0}")]
    TooLarge(String),
    /// It can't be done now.
    #[error("{0}")]
    Unavailable(String),
    /// A device did not answer in time.
    #[error("{0}")]
    Timeout(String),
    /// The registry itself failed.
    #[error("{0}")]
    Internal(String),
}

impl RegistryError {
    /// There is no such version.
    pub fn no_version(version: &ModelVersion) -> Self {
        Self::NotFound(format!("there is no {version}; see `edgewise model list --name {}`", version.name))
    }
}

impl From<StoreError> for RegistryError {
    fn from(error: StoreError) -> Self {
        match error.is_passing() {
            true => Self::Unavailable(error.to_string()),
            false => Self::Internal(error.to_string()),
        }
    }
}

impl From<ObjectError> for RegistryError {
    fn from(error: ObjectError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<tokio::task::JoinError> for RegistryError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Internal(format!("a task of the registry ended early: {error}"))
    }
}

impl From<NameError> for RegistryError {
    fn from(error: NameError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<BundleError> for RegistryError {
    fn from(error: BundleError) -> Self {
        match error {
            BundleError::Io { .. } => Self::Internal(error.to_string()),
            _ => Self::Refused(error.to_string()),
        }
    }
}
