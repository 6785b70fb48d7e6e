//! Where objects lie: a directory of this machine, or a bucket that many machines share. What differs between the two.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
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

    /// Makes durable what a killed process had renamed into its place and not synced: registrations will rely on it.
    pub(super) async fn sync(&self) -> Result<(), ObjectError> {
        self.on_disk(|root| rustix::fs::syncfs(File::open(root)?).map_err(io::Error::from)).await.map(drop)
    }

    /// Deletes what processes that were killed left half-written, where it is older than `age`; says how many. The library
    /// writes to `NAME#NUMBER`, and neither lists nor deletes such names.
    pub(super) async fn delete_staged(&self, age: Duration) -> Result<usize, ObjectError> {
        let deleted = self.on_disk(move |root| {
            let mut deleted = 0;
            let mut open = vec![root.to_owned()];
            while let Some(directory) = open.pop() {
                for entry in fs::read_dir(&directory)? {
                    let entry = entry?;
                    // It may have got its name meanwhile.
                    let Ok(metadata) = entry.metadata() else { continue };
                    if metadata.is_dir() {
                        open.push(entry.path());
                    } else if is_staged(&entry.file_name())
                        && metadata.modified()?.elapsed().is_ok_and(|is| is >= age)
                    {
                        fs::remove_file(entry.path())?;
                        deleted += 1;
                    }
                }
            }
            Ok(deleted)
        });
        Ok(deleted.await?.unwrap_or(0))
    }

    /// Does blocking work on the directory, where there is one.
    pub(super) async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&std::path::Path) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, ObjectError> {
        let Some(root) = self.root.clone() else { return Ok(None) };
        let path = root.clone();
        let done = tokio::task::spawn_blocking(move || work(&root))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        done.map(Some).map_err(|source| ObjectError::Directory { path, source })
    }

    /// Makes the deletion of an object durable. The library syncs the files that it writes, not what it deletes; a
    /// bucket's answer says that it is done.
    pub(super) async fn sync_deletion(&self, path: &str) -> Result<(), ObjectError> {
        let path = path.to_owned();
        let sync = move |root: &std::path::Path| {
            let object = root.join(path);
            match File::open(object.parent().unwrap_or(root)) {
                Ok(directory) => directory.sync_all(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
        };
        self.on_disk(sync).await.map(drop)
    }
}

/// Whether the library writes to a file of that name.
fn is_staged(name: &OsStr) -> bool {
    let number = name.to_str().and_then(|name| name.rsplit_once('#')).map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn directory(root: PathBuf) -> Result<Place, ObjectError> {
    fs::create_dir_all(&root).map_err(|source| ObjectError::Directory { path: root.clone(), source })?;
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
