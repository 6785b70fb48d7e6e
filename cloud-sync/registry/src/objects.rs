//! Bytes by name: chunks, manifests and files of rows. The only folder that names the object store.
//!
//! Invariants:
//! - When a write or a deletion has returned it is durable, save for the deletions of a sweep; an object is never seen
//!   half-written: a file gets its name when it is complete and synced, and a bucket shows an object when it has all.
//! - Chunks and manifests are named by their digest, and are compared with it whenever they are read.

mod place;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::digest::Digest;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use place::Place;

/// Objects that a sweep deletes with one request, where the store can, and as many as are deleted before it is
/// looked whether they still may be.
const DELETED_TOGETHER: usize = 100;

/// The object that says to which database the others belong.
const OWNER: &str = "database";

/// Where objects lie. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Objects {
    place: Place,
}

/// What a digest names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// A piece of a bundle.
    Chunk(Digest),
    /// The list of a bundle's pieces.
    Manifest(Digest),
}

/// An object that can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The URL's scheme names a store that this build can't speak to.
    #[error("--storage {0}:…: use file:///DIR or s3://BUCKET/PREFIX")]
    NotBuiltIn(String),
    /// The directory can't be used.
    #[error("preparing {path}: {source}", path = .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store said no.
    #[error("{doing} {path}: {source}")]
    Store {
        /// What was being done.
        doing: &'static str,
        /// To which object.
        path: String,
        /// Why it failed.
        source: object_store::Error,
    },
    /// The objects are another database's.
    #[error(
        "--storage: what lies there belongs to another database, and this one would delete what it does not know: check \
         --storage and --database. If this database is to take it over, delete the object `{OWNER}` there"
    )]
    Foreign,
    /// An object is not what its name says.
    #[error("{0} is damaged in the store: its bytes do not have that digest")]
    Damaged(String),
}

impl Objects {
    /// Opens the store of `url`, making its directory where there is none, and sees that it may be listed: who can't
    /// do that can't read or sweep either, and should be told at the start.
    pub async fn open(url: &str) -> Result<Self, ObjectError> {
        let place = Place::open(url)?;
        place.sync().await?;
        let first = place.store.list(None).next().await;
        first.transpose().map_err(failed("listing", url))?;
        Ok(Self { place })
    }

    /// Makes sure that the objects belong to the database of this id: a registry deletes what its database does not need.
    pub async fn claim(&self, database: &str) -> Result<(), ObjectError> {
        match self.get(OWNER).await? {
            Some(owner) if owner == database.as_bytes() => Ok(()),
            Some(_) => Err(ObjectError::Foreign),
            None => self.put(OWNER, database.to_owned().into()).await,
        }
    }

    /// Deletes what killed processes left half-written, where it is older than `age`; says how many.
    pub async fn delete_staged(&self, age: Duration) -> Result<usize, ObjectError> {
        self.place.delete_staged(age).await
    }

    /// Writes an object.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        let put = self.place.store.put(&Path::from(path), bytes.into()).await;
        put.map(|_| ()).map_err(failed("writing", path))
    }

    /// Reads an object, if it is there.
    pub async fn get(&self, path: &str) -> Result<Option<Bytes>, ObjectError> {
        let found = match self.place.store.get(&Path::from(path)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed("reading", path)(error)),
        };
        found.bytes().await.map(Some).map_err(failed("reading", path))
    }

    /// Deletes an object; one that is not there is deleted already.
    pub async fn delete(&self, path: &str) -> Result<(), ObjectError> {
        match self.place.store.delete(&Path::from(path)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(failed("deleting", path)(error)),
        }
        self.place.sync_deletion(path).await
    }

    /// Writes a chunk or manifest unless it is there undamaged; says whether it was written.
    pub async fn put_named(&self, named: Named, bytes: Bytes) -> Result<bool, ObjectError> {
        match self.get_named(named).await {
            Ok(Some(_)) => Ok(false),
            Ok(None) | Err(ObjectError::Damaged(_)) => self.put(&named.path(), bytes).await.map(|()| true),
            Err(error) => Err(error),
        }
    }

    /// Reads a chunk or manifest, if it is there.
    pub async fn get_named(&self, named: Named) -> Result<Option<Bytes>, ObjectError> {
        let path = named.path();
        match self.get(&path).await? {
            Some(bytes) if Digest::of(&bytes) == named.digest() => Ok(Some(bytes)),
            Some(_) => Err(ObjectError::Damaged(path)),
            None => Ok(None),
        }
    }

    /// Those of the chunks that are here undamaged and could be read; why others are not, [`Objects::get_named`] says. A
    /// directory's are read in one go: to wake a thread for each takes longer than to read it.
    pub async fn chunks(&self, digests: Vec<Digest>) -> Vec<(Digest, Bytes)> {
        let asked = digests.clone();
        let read = move |root: &std::path::Path| {
            let chunk =
                |digest: Digest| Some((digest, fs::read(root.join(Named::Chunk(digest).path())).ok()?));
            let chunks =
                asked.into_iter().filter_map(chunk).filter(|(digest, bytes)| Digest::of(bytes) == *digest);
            Ok(chunks.map(|(digest, bytes)| (digest, Bytes::from(bytes))).collect())
        };
        match self.place.on_disk(read).await {
            Ok(Some(chunks)) => chunks,
            Ok(None) => {
                let read =
                    |digest| async move { Some((digest, self.get_named(Named::Chunk(digest)).await.ok()??)) };
                let together = digests.len().max(1);
                futures_util::stream::iter(digests)
                    .map(read)
                    .buffered(together)
                    .filter_map(std::future::ready)
                    .collect()
                    .await
            }
            Err(_) => Vec::new(),
        }
    }

    /// The chunks and manifests that `keep` does not want, as many at a time as [`Objects::delete_all`] takes.
    pub fn unwanted<'a>(
        &'a self,
        keep: impl Fn(Named) -> bool + Send + Sync + 'a,
    ) -> BoxStream<'a, Result<Vec<Path>, ObjectError>> {
        let kinds = [("chunks", Named::Chunk as fn(Digest) -> Named), ("manifests", Named::Manifest)];
        let all = futures_util::stream::iter(kinds).flat_map(move |(prefix, named)| {
            let listing = self.place.store.list(Some(&Path::from(prefix)));
            listing.map(move |object| {
                let path = object.map_err(failed("listing", prefix))?.location;
                let digest = path.filename().and_then(|name| name.parse().ok());
                Ok((digest.map(named), path))
            })
        });
        let unwanted = all.try_filter_map(move |(named, path): (Option<Named>, Path)| {
            std::future::ready(Ok(named.is_some_and(|named| !keep(named)).then_some(path)))
        });
        unwanted.try_chunks(DELETED_TOGETHER).map_err(|error| error.1).boxed()
    }

    /// Deletes objects; says how many there were. A power cut may bring some back until the next sweep, which does no harm
    /// and saves a sync for each.
    pub async fn delete_all(&self, paths: Vec<Path>) -> Result<usize, ObjectError> {
        let paths = futures_util::stream::iter(paths.into_iter().map(Ok)).boxed();
        let mut deletions = self.place.store.delete_stream(paths);
        let mut deleted = 0;
        while let Some(deletion) = deletions.next().await {
            match deletion {
                Ok(_) => deleted += 1,
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed("deleting", "what no version needs")(error)),
            }
        }
        Ok(deleted)
    }
}

impl Named {
    fn digest(self) -> Digest {
        match self {
            Self::Chunk(digest) | Self::Manifest(digest) => digest,
        }
    }

    /// Spread over 256 directories, so that none of them gets too long to list.
    fn path(self) -> String {
        let folder = match self {
            Self::Chunk(_) => "chunks",
            Self::Manifest(_) => "manifests",
        };
        let digest = self.digest();
        let first = digest.as_bytes().first().copied().unwrap_or_default();
        format!("{folder}/{first:02x}/{digest}")
    }
}

fn failed(doing: &'static str, path: &str) -> impl FnOnce(object_store::Error) -> ObjectError + use<> {
    let path = path.to_owned();
    move |source| ObjectError::Store { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn objects_come_back_until_they_are_swept_and_damage_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let objects = Objects::open(&format!("file://{}", directory.path().display())).await.unwrap();
        let (kept, lost) = (Named::Chunk(Digest::of(b"kept")), Named::Manifest(Digest::of(b"lost")));
        assert!(objects.put_named(kept, Bytes::from_static(b"kept")).await.unwrap());
        assert!(!objects.put_named(kept, Bytes::from_static(b"kept")).await.unwrap(), "it is there already");
        objects.put_named(lost, Bytes::from_static(b"lost")).await.unwrap();
        let unwanted: Vec<Vec<Path>> = objects.unwanted(|named| named == kept).try_collect().await.unwrap();
        assert_eq!(objects.delete_all(unwanted.concat()).await.unwrap(), 1);
        assert_eq!(objects.get_named(lost).await.unwrap(), None);
        assert_eq!(objects.get_named(kept).await.unwrap().unwrap(), &b"kept"[..]);
        let half = directory.path().join(format!("{}#1", lost.path()));
        std::fs::write(&half, b"lo").unwrap();
        assert_eq!(objects.delete_staged(Duration::from_secs(60)).await.unwrap(), 0, "it is being written");
        assert_eq!(objects.delete_staged(Duration::ZERO).await.unwrap(), 1);
        assert!(!half.exists());
        objects.put(&kept.path(), Bytes::from_static(b"kepT")).await.unwrap();
        assert!(matches!(objects.get_named(kept).await, Err(ObjectError::Damaged(_))));
        assert!(objects.put_named(kept, Bytes::from_static(b"kept")).await.unwrap(), "it is mended");
        assert_eq!(objects.get_named(kept).await.unwrap().unwrap(), &b"kept"[..]);
    }

    #[tokio::test]
    async fn objects_belong_to_the_database_that_came_first() {
        let directory = tempfile::tempdir().unwrap();
        let objects = Objects::open(&format!("file://{}", directory.path().display())).await.unwrap();
        objects.claim("one").await.unwrap();
        objects.claim("one").await.unwrap();
        assert!(matches!(objects.claim("other").await, Err(ObjectError::Foreign)));
    }

    #[tokio::test]
    async fn a_foreign_url_is_refused() {
        let error = Objects::open("gs://bucket").await.unwrap_err().to_string();
        assert!(error.contains("gs:") && error.contains("s3://"), "{error}");
    }
}
