//! Where objects lie: a directory of this machine, or a bucket that many machines share. What differs between the two.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};

use super::ObjectError;

/// Longest time for which a request to a bucket is tried again; each try takes at most the library's 30 s. Devices,
/// receipts and callers wait meanwhile, and they ask again, too.
const RETRY: Duration = Duration::from_secs(30);

/// An open store.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The directory, for one of this machine.
    root: Option<PathBuf>,
}

impl Place {
    /// The store of a URL. A directory is made where there is none; a bucket must be there.
    pub(super) fn open(url: &str) -> Result<Self, ObjectError> {
        if let Some(path) = url.strip_prefix("file://").filter(|path| path.starts_with('/')) {
            return directory(PathBuf::from(path));
        }
        if let Some(bucket) = url.strip_prefix("s3://") {
            return s3(bucket);
        }
        Err(ObjectError::NotBuiltIn(url.split(':').next().unwrap_or_default().to_owned()))
    }

    /// Makes the deletion of an object durable. The library syncs the files that it writes, not what it deletes; a
    /// bucket's answer says that it is done.
    pub(super) async fn sync_deletion(&self, path: &str) -> Result<(), ObjectError> {
        let Some(root) = &self.root else { return Ok(()) };
        let directory = root.join(path).parent().map(ToOwned::to_owned).unwrap_or_else(|| root.clone());
        let synced = tokio::task::spawn_blocking(move || match std::fs::File::open(&directory) {
            Ok(opened) => opened.sync_all().map_err(|source| (directory, source)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err((directory, source)),
        });
        match synced.await {
            Ok(result) => result.map_err(|(path, source)| ObjectError::Directory { path, source }),
            Err(error) => {
                Err(ObjectError::Directory { path: path.into(), source: std::io::Error::other(error) })
            }
        }
    }
}

fn directory(root: PathBuf) -> Result<Place, ObjectError> {
    std::fs::create_dir_all(&root).map_err(|source| ObjectError::Directory { path: root.clone(), source })?;
    let path = root.display().to_string();
    let store = LocalFileSystem::new_with_prefix(&root)
        .map_err(|source| ObjectError::Store { doing: "opening", path, source })?
        .with_fsync(true);
    Ok(Place { store: Arc::new(store), root: Some(root) })
}

/// `BUCKET` or `BUCKET/PREFIX`; who we are and where it is stands in the variables `AWS_*`, as for other programs.
fn s3(bucket: &str) -> Result<Place, ObjectError> {
    let (bucket, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
    let failed = |source| ObjectError::Store { doing: "opening the bucket", path: bucket.to_owned(), source };
    // The client takes its cryptography from the process; somebody else may have said the same already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let retry = RetryConfig { retry_timeout: RETRY, ..RetryConfig::default() };
    let store = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry).build();
    let store = PrefixStore::new(store.map_err(failed)?, Path::from(prefix));
    Ok(Place { store: Arc::new(store), root: None })
}
