//! Pieces of objects for devices that pull, with the objects that were asked for last in memory: a fleet that gets a
//! new version asks for the same chunks, and a manifest is asked for piece by piece.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cloud_sync::contract::{Chunk, Want};
use cloud_sync::digest::Digest;
use cloud_sync::limits::MAX_PIECE_BYTES;
use serde_bytes::ByteBuf;

use crate::objects::{Named, ObjectError, Objects};

/// Bytes of objects that are kept in memory: a few small models, or the largest manifest with room beside it.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// Reads pieces of chunks and manifests.
#[derive(Debug)]
pub(super) struct Pieces {
    objects: Objects,
    cache: Mutex<Cache>,
}

/// Objects in memory, the first to come the first to go.
#[derive(Debug, Default)]
struct Cache {
    objects: HashMap<Digest, Bytes>,
    order: VecDeque<Digest>,
    bytes: usize,
}

impl Pieces {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects, cache: Mutex::default() }
    }

    /// The piece that is wanted, or the word that there is no such object.
    pub(super) async fn read(&self, want: &Want) -> Result<Chunk, ObjectError> {
        let object = self.object(want.digest).await?.unwrap_or_default();
        let begin = usize::try_from(want.offset).unwrap_or(usize::MAX).min(object.len());
        let end = begin.saturating_add(MAX_PIECE_BYTES).min(object.len());
        let bytes = object.get(begin..end).unwrap_or_default();
        Ok(Chunk {
            digest: want.digest,
            offset: want.offset,
            total: object.len() as u64,
            bytes: ByteBuf::from(bytes),
        })
    }

    /// Has the chunks among these in memory for [`Pieces::read`], as far as they can be read.
    pub(super) async fn prepare(&self, wants: &[Want]) {
        let mut absent: BTreeSet<Digest> = wants.iter().map(|want| want.digest).collect();
        absent.retain(|digest| !self.cache().objects.contains_key(digest));
        if !absent.is_empty() {
            let chunks = self.objects.chunks(absent.into_iter().collect()).await;
            let mut cache = self.cache();
            chunks.into_iter().for_each(|(digest, bytes)| cache.insert(digest, bytes));
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn object(&self, digest: Digest) -> Result<Option<Bytes>, ObjectError> {
        let cached = self.cache().objects.get(&digest).cloned();
        if cached.is_some() {
            return Ok(cached);
        }
        let mut found = self.undamaged(Named::Chunk(digest)).await?;
        if found.is_none() {
            found = self.undamaged(Named::Manifest(digest)).await?;
        }
        if let Some(bytes) = &found {
            self.cache().insert(digest, bytes.clone());
        }
        Ok(found)
    }

    /// An object, unless it is damaged: then it is not here, so that the device can say what it lacks.
    async fn undamaged(&self, named: Named) -> Result<Option<Bytes>, ObjectError> {
        match self.objects.get_named(named).await {
            Err(error @ ObjectError::Damaged(_)) => {
                tracing::error!(%error, "an object is not sent; registering its bundle again mends it");
                Ok(None)
            }
            found => found,
        }
    }
}

impl Cache {
    fn insert(&mut self, digest: Digest, bytes: Bytes) {
        let size = bytes.len();
        if self.objects.insert(digest, bytes).is_none() {
            self.order.push_back(digest);
            self.bytes += size;
        }
        while self.bytes > CACHE_BYTES
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.objects.remove(&oldest).map_or(0, |bytes| bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_comes_in_pieces_and_an_unknown_one_as_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let objects = Objects::open(&format!("file://{}", directory.path().display())).await.unwrap();
        let object: Vec<u8> = (0..MAX_PIECE_BYTES + 10).map(|i| i as u8).collect();
        let digest = Digest::of(&object);
        objects.put_named(Named::Manifest(digest), object.clone().into()).await.unwrap();
        let pieces = Pieces::new(objects);
        let first = pieces.read(&Want { digest, offset: 0 }).await.unwrap();
        let second = pieces.read(&Want { digest, offset: MAX_PIECE_BYTES as u64 }).await.unwrap();
        assert_eq!((first.total, second.bytes.len()), (object.len() as u64, 10));
        assert_eq!([first.bytes.as_slice(), &second.bytes].concat(), object);
        assert!(pieces.read(&Want { digest, offset: u64::MAX }).await.unwrap().bytes.is_empty());
        let unknown = pieces.read(&Want { digest: Digest::of(b"?"), offset: 0 }).await.unwrap();
        assert_eq!(unknown.total, 0);

        let damaged = Digest::of(b"whole");
        pieces.objects.put_named(Named::Chunk(damaged), Bytes::from_static(b"whole")).await.unwrap();
        let folder = directory.path().join("chunks").join(&damaged.to_string()[..2]);
        std::fs::write(folder.join(damaged.to_string()), b"whale").unwrap();
        pieces.prepare(&[Want { digest: damaged, offset: 0 }]).await;
        assert_eq!(pieces.read(&Want { digest: damaged, offset: 0 }).await.unwrap().total, 0);
    }

    #[tokio::test]
    async fn chunks_are_read_together_and_then_from_memory() {
        let directory = tempfile::tempdir().unwrap();
        let objects = Objects::open(&format!("file://{}", directory.path().display())).await.unwrap();
        let digests = [b"one", b"two"].map(|bytes| Digest::of(bytes));
        for (digest, bytes) in digests.into_iter().zip([b"one", b"two"]) {
            objects.put_named(Named::Chunk(digest), Bytes::from_static(bytes)).await.unwrap();
        }
        let pieces = Pieces::new(objects);
        let want = |digest| Want { digest, offset: 0 };
        pieces.prepare(&[want(digests[0]), want(Digest::of(b"?")), want(digests[1])]).await;
        std::fs::remove_dir_all(directory.path().join("chunks")).unwrap();
        assert_eq!(pieces.read(&want(digests[0])).await.unwrap().bytes.as_slice(), b"one");
        assert_eq!(pieces.read(&want(digests[1])).await.unwrap().bytes.as_slice(), b"two");
    }

    #[test]
    fn the_cache_keeps_its_bound() {
        let mut cache = Cache::default();
        let large = Bytes::from(vec![0; CACHE_BYTES / 2]);
        for name in ["a", "b", "c", "c"] {
            cache.insert(Digest::of(name.as_bytes()), large.clone());
        }
        assert_eq!((cache.objects.len(), cache.bytes), (2, CACHE_BYTES));
        assert!(!cache.objects.contains_key(&Digest::of(b"a")));
    }
}
