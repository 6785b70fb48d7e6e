//! The manifest: every file of a bundle and every chunk of every file.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{BundleError, limit};
use crate::bounded;
use crate::chunk::ChunkRef;
use crate::digest::Digest;
use crate::limits;

/// A path within a bundle: relative, `/` between its parts, none of which is hidden or leads upwards.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BundlePath(String);

/// What a bundle is made of. Files are sorted by path; each path stands once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this format: 1.
    format: u32,
    /// The files.
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::MAX_BUNDLE_FILES }>")]
    pub files: Vec<FileEntry>,
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Where it lies.
    pub path: BundlePath,
    /// Its size in bytes: the sum of its chunks' sizes.
    pub size: u64,
    /// Its bytes, in order.
    pub chunks: Vec<ChunkRef>,
}

impl BundlePath {
    /// Checks `path`.
    pub fn new(path: impl Into<String>) -> Result<Self, BundleError> {
        let path = path.into();
        let why = if path.len() > limits::MAX_PATH_BYTES {
            Some("it is too long")
        } else if path.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
            Some("a part of it is empty or begins with a dot")
        } else if path.contains('\\') || path.chars().any(char::is_control) {
            Some("it holds a backslash or a control character")
        } else {
            None
        };
        match why {
            Some(why) => Err(BundleError::Path(limits::bounded_text(path), why)),
            None => Ok(Self(path)),
        }
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BundlePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for BundlePath {
    type Error = BundleError;

    fn try_from(path: String) -> Result<Self, BundleError> {
        Self::new(path)
    }
}

impl From<BundlePath> for String {
    fn from(path: BundlePath) -> String {
        path.0
    }
}

impl Manifest {
    /// The manifest of `files`, in whatever order they come.
    pub fn new(mut files: Vec<FileEntry>) -> Result<Self, BundleError> {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let manifest = Self { format: 1, files };
        manifest.check()?;
        Ok(manifest)
    }

    /// Its bytes: what is hashed for the bundle's digest.
    pub fn encode(&self) -> Result<Vec<u8>, BundleError> {
        let bytes = serde_cbor::to_vec(self).map_err(|error| BundleError::Manifest(error.to_string()))?;
        limit("the manifest", bytes.len() as u64, limits::MAX_MANIFEST_BYTES as u64)?;
        Ok(bytes)
    }

    /// The manifest of `bytes`, once all that it says of itself holds.
    pub fn decode(bytes: &[u8]) -> Result<Self, BundleError> {
        limit("the manifest", bytes.len() as u64, limits::MAX_MANIFEST_BYTES as u64)?;
        let manifest: Self =
            serde_cbor::from_slice(bytes).map_err(|error| BundleError::Manifest(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The entry of a file.
    pub fn file(&self, path: &BundlePath) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.path == *path)
    }

    /// All chunks in the order of the files; a chunk that is used twice comes twice.
    pub fn chunks(&self) -> impl Iterator<Item = &ChunkRef> {
        self.files.iter().flat_map(|file| &file.chunks)
    }

    /// Each chunk once, in the order of first use.
    pub fn distinct_chunks(&self) -> Vec<ChunkRef> {
        let mut seen = HashSet::new();
        self.chunks().filter(|chunk| seen.insert(chunk.digest)).copied().collect()
    }

    /// Puts a file together from its chunks, each compared with its digest.
    pub fn assemble<E: From<BundleError>>(
        &self,
        path: &BundlePath,
        mut fetch: impl FnMut(&ChunkRef) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let entry = self.file(path).ok_or_else(|| BundleError::Missing(path.clone()))?;
        let mut bytes = Vec::with_capacity(usize::try_from(entry.size).unwrap_or(0));
        for chunk in &entry.chunks {
            let piece = fetch(chunk)?;
            if piece.len() != chunk.size as usize || Digest::of(&piece) != chunk.digest {
                return Err(BundleError::Damaged(format!("chunk {} of {path}", chunk.digest)).into());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// Everything that the rest of the product relies on: checked sums, bounded sizes, one entry a path.
    fn check(&self) -> Result<(), BundleError> {
        let wrong = |what: String| Err(BundleError::Manifest(what));
        if self.format != 1 {
            return wrong(format!("format {} is not known here; update this program", self.format));
        }
        limit("the number of files", self.files.len() as u64, limits::MAX_BUNDLE_FILES as u64)?;
        let sorted = self.files.is_sorted_by(|a, b| a.path < b.path);
        if !sorted {
            return wrong("its files are not sorted or stand twice".to_owned());
        }
        let mut size = 0u64;
        for file in &self.files {
            let bounded = |chunk: &ChunkRef| (1..=limits::MAX_CHUNK_BYTES).contains(&(chunk.size as usize));
            if !file.chunks.iter().all(bounded) {
                return wrong(format!("{} has a chunk of an impossible size", file.path));
            }
            // No overflow: the count of chunks is bounded by the manifest's size, each by MAX_CHUNK_BYTES.
            if file.chunks.iter().map(|chunk| u64::from(chunk.size)).sum::<u64>() != file.size {
                return wrong(format!("the chunks of {} do not add up to its size", file.path));
            }
            size = size.saturating_add(file.size);
        }
        limit("the bundle", size, limits::MAX_BUNDLE_BYTES)
    }
}
